"""The charts of evaluations, in Altair: failures, failures by turn, and lengths of replies."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from chattune.evaluate import Evaluation
from chattune.evaluate.intervals import Figure
from chattune.report.figures import meaning, read
from chattune.report.labels import labels
from chattune.report.picture import LABELS, ROW_WIDTH, WIDTH, Picture
from chattune.report.tables import FEW, Table, figure_table, occurring, turn_table

if TYPE_CHECKING:
    import altair

OF_100 = "of 100 replies, with 95 % interval"
_BARS = 12


def evaluation_pictures(evaluations: Sequence[Evaluation]) -> Iterator[Picture]:
    """Yield the pictures that the evaluations have the figures for."""
    if len(evaluations) > FEW:
        yield from (one_failure(evaluations, name) for name in occurring(evaluations))
    elif any(e.scores.get("failures") for e in evaluations):
        yield failures(evaluations)
    if turn_table(evaluations).rows:
        yield failures_by_turn(evaluations)
    if evaluations:
        yield lengths(evaluations)


def failures(evaluations: Sequence[Evaluation]) -> Picture:
    """Draw the rate of each failure with its interval, for a few evaluations beside each other."""
    names = labels(evaluations)
    rows = [
        {"failure": wrapped(meaning(failure).title), "model": model} | of_100(figure)
        for model, evaluation in zip(names, evaluations, strict=True)
        for failure, figure in read(evaluation.scores.get("failures", {})).items()
    ]
    return Picture(
        "failures",
        "How often each failure occurs",
        "Points further left are better. A line is a 95 % interval.",
        figure_table(evaluations, "failures"),
        _failure_rows(rows, names),
    )


def one_failure(evaluations: Sequence[Evaluation], name: str) -> Picture:
    """Draw the rate of one failure with its interval, with a row for each of many evaluations."""
    figures = [read(evaluation.scores.get("failures", {})) for evaluation in evaluations]
    rows = [
        {"model": wrapped(label)} | of_100(f[name])
        for label, f in zip(labels(evaluations), figures, strict=True)
        if name in f
    ]
    return Picture(
        f"failure-{name}",
        meaning(name).title,
        "Points further left are better. A line is a 95 % interval.",
        figure_table(evaluations, "failures", only=name),
        _model_rows(rows),
    )


def failures_by_turn(evaluations: Sequence[Evaluation]) -> Picture:
    """Draw the rate of each failure that occurs, from turn to turn of the conversations."""
    names = labels(evaluations)
    rows = [
        {"failure": wrapped(meaning(failure).title), "model": model, "turn": int(turn)}
        | of_100(figure)
        for model, evaluation in zip(names, evaluations, strict=True)
        for turn, figures in evaluation.scores.get("by_turn", {}).items()
        for failure, figure in read(figures).items()
        if failure in occurring(evaluations)
    ]
    return Picture(
        "turns",
        "Failures as a conversation goes on",
        "Turn 1 is the model's first reply, which sees none of its own text.",
        turn_table(evaluations),
        _turns(rows, names) if len(names) <= FEW else None,
    )


def lengths(evaluations: Sequence[Evaluation]) -> Picture:
    """Draw how many replies of each evaluation have how many words."""
    names = labels(evaluations)
    words = {
        name: [len(j.sample.reply.split()) for j in e.judged]
        for name, e in zip(names, evaluations, strict=True)
    }
    step = _step(max(max(counts, default=0) for counts in words.values()))
    bars: list[dict[str, Any]] = [
        {"model": name, "from": low, "to": low + step, "replies": replies}
        for name, counts in words.items()
        for low in range(0, max(counts, default=0) + 1, step)
        if (replies := sum(low <= count < low + step for count in counts))
    ]
    texts = [(b["model"], f"{b['from']} to {b['to'] - 1}", f"{b['replies']:,}") for b in bars]
    return Picture(
        "lengths",
        "Length of the replies",
        f"Each bar counts the replies of a range of {step} words.",
        Table("Length of the replies", ("Model", "Words", "Replies"), texts),
        _bars(bars, names),
    )


def of_100(figure: Figure) -> dict[str, float]:
    """Return a rate and its interval as numbers of 100 replies."""
    return {key: 100 * getattr(figure, key) for key in ("value", "low", "high")}


def row_labels() -> "altair.Axis":
    """Return an axis for rows whose labels may have several lines, always equally wide."""
    import altair as alt

    return alt.Axis(
        title=None,
        grid=False,
        labelExpr="split(datum.label, '\\n')",
        labelLimit=LABELS,
        minExtent=LABELS,
        maxExtent=LABELS,
    )


def _failure_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Draw a row for each failure, in which the evaluations lie below each other."""
    import altair as alt

    base = alt.Chart({"values": rows}).encode(
        y=alt.Y("failure:N", sort=None, axis=row_labels()),
        yOffset=alt.YOffset("model:N", scale=alt.Scale(domain=list(names))),
        color=alt.Color("model:N", **_models(names)),
    )
    points = base.mark_point().encode(
        x=alt.X("value:Q", title=OF_100, scale=alt.Scale(domainMin=0)),
        shape=alt.Shape("model:N", **_models(names)),
    )
    intervals = base.mark_rule().encode(x="low:Q", x2="high:Q")
    failures = len({row["failure"] for row in rows})
    return (intervals + points).properties(
        width=ROW_WIDTH, height=failures * max(34, 16 * len(names) + 8)
    )


def _model_rows(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Draw a row for each evaluation."""
    import altair as alt

    base = alt.Chart({"values": rows}).encode(y=alt.Y("model:N", sort=None, axis=row_labels()))
    points = base.mark_point().encode(
        x=alt.X("value:Q", title=OF_100, scale=alt.Scale(domainMin=0))
    )
    intervals = base.mark_rule().encode(x="low:Q", x2="high:Q")
    lines = max(row["model"].count("\n") + 1 for row in rows)
    return (intervals + points).properties(width=ROW_WIDTH, height=len(rows) * (14 * lines + 8))


def _turns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Draw a small panel for each failure, with a line for each evaluation."""
    import altair as alt

    # Evaluations lie side by side at each turn, so that their intervals do not hide each other.
    shift = {name: 0.12 * (i - (len(names) - 1) / 2) for i, name in enumerate(names)}
    shifted = [{**row, "at": row["turn"] + shift[row["model"]]} for row in rows]
    turns = sorted({row["turn"] for row in rows})
    axis = alt.Axis(values=turns, format="d", grid=False, title="turn")
    scale = alt.Scale(domain=[turns[0] - 0.4, turns[-1] + 0.4], nice=False)
    few_ticks = alt.Axis(tickCount=3)
    rates = alt.Y("value:Q", title="of 100 replies", scale=alt.Scale(domainMin=0), axis=few_ticks)
    base = alt.Chart().encode(
        x=alt.X("at:Q", scale=scale, axis=axis), color=alt.Color("model:N", **_models(names))
    )
    panel = alt.layer(
        base.mark_line().encode(y=rates),
        base.mark_rule(opacity=0.6).encode(y="low:Q", y2="high:Q"),
        base.mark_point().encode(y=rates, shape=alt.Shape("model:N", **_models(names))),
        data={"values": shifted},
    ).properties(width=(WIDTH - 90) / 2, height=90)
    order = list(dict.fromkeys(row["failure"] for row in rows))
    facet = alt.Facet(
        "failure:N", sort=order, header=alt.Header(labelExpr="split(datum.label, '\\n')")
    )
    return panel.facet(facet=facet, columns=2)


def _bars(bars: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    import altair as alt

    chart = (
        alt.Chart({"values": bars})
        .mark_bar()
        .encode(
            x=alt.X("from:Q", bin="binned", title="words in a reply", axis=alt.Axis(grid=False)),
            x2="to:Q",
            y=alt.Y("replies:Q", title="replies", axis=alt.Axis(format="d")),
        )
        .properties(width=WIDTH - 66, height=120 if len(names) == 1 else 70)
    )
    if len(names) == 1:
        return chart
    return chart.facet(facet=alt.Facet("model:N", sort=list(names)), columns=1)


def _models(names: Sequence[str]) -> dict[str, Any]:
    """Return the scale of colours and shapes, and no legend for a single evaluation.

    Only with the domain written down does Vega-Lite make one legend of colours and shapes.
    """
    import altair as alt

    legend = {"legend": None} if len(names) == 1 else {}
    return {"scale": alt.Scale(domain=list(names)), **legend}


def _step(longest: int) -> int:
    """Return the width of the bars: 1, 2 or 5 times a power of ten, for about a dozen of them."""
    widths: list[int] = [size * 10**power for power in range(9) for size in (1, 2, 5)]
    return next(width for width in widths if longest < width * _BARS)


def wrapped(text: str) -> str:
    """Return a title in lines that are short enough for the labels of rows."""
    return "\n".join(textwrap.wrap(text, 17))
