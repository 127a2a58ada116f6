"""The charts of trainings, comparisons and sweeps, in Altair."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison
from chattune.evaluate.sweeping import Sweep
from chattune.report.charts import of_100, row_labels, wrapped
from chattune.report.contrasts import SIGNIFICANT
from chattune.report.figures import meaning, title
from chattune.report.labels import pair
from chattune.report.picture import COLOURS, ROW_WIDTH, WIDTH, Picture
from chattune.report.tables import Table, comparison_table, sweep_table
from chattune.run import METRICS

_POINTS = 150  # of the training loss; of more steps, neighbours are averaged
_ROWS = 12  # of the table of losses


def loss_pictures(evaluations: Sequence[Evaluation]) -> Iterator[Picture]:
    """Yield the loss curve of each run that the evaluations are of, and whose folder is there."""
    models = [e.scores["model"] for e in evaluations]
    for number, place in enumerate(dict.fromkeys(m["name"] for m in models if m["kind"] == "run")):
        if (Path(place) / METRICS).is_file():
            yield loss(Path(place), f"loss-{number + 1}")


def loss(run: Path, name: str = "loss") -> Picture:
    """Draw a run's training and validation loss by step, from its metrics.jsonl."""
    lines = [json.loads(line) for line in (run / METRICS).read_text("utf-8").splitlines()]
    training = _averaged([(m["step"], m["loss"]) for m in lines if "loss" in m], _POINTS)
    validation = [(m["step"], m["validation_loss"]) for m in lines if "validation_loss" in m]
    return Picture(
        name,
        f"Loss while {run.name} was tuned",
        "Training is the loss on the conversations of a step, validation that on held-out ones. "
        "If validation rises while training falls, the run learns its conversations by heart.",
        Table(
            f"Loss of {run.name}",
            ("Step", "Training", "Validation"),
            _loss_rows(training, validation),
        ),
        _loss_chart({"training": training, "validation": validation}),
    )


def differences(comparison: Comparison, name: str = "differences") -> Picture:
    """Draw the differences of the rates of two evaluations with their intervals."""
    a, b = pair(comparison)
    rows = [
        {
            "figure": wrapped(title(d.name)),
            "beyond": "yes" if d.p < SIGNIFICANT else "no",
            **of_100(d.difference),
        }
        for d in comparison.differences
        if meaning(d.name).is_rate
    ]
    return Picture(
        name,
        "Differences of the rates",
        f"Right of zero, {b} does it more often than {a}. Figures that are not "
        "shares of replies are in the table only.",
        comparison_table(comparison),
        _difference_chart(rows) if rows else None,
    )


def frontier(sweep: Sweep) -> Picture:
    """Draw the cells of a sweep: repetition against dependence on the prompt."""
    cells = [
        {
            "x": cell.choosing["seq_rep_4"].value,
            "y": cell.choosing["own_prompt_nats"].value,
            "kind": _kind(sweep, place),
            "number": f"{place + 1}" if place in {*sweep.frontier, sweep.chosen} else "",
        }
        for place, cell in enumerate(sweep.cells)
    ]
    return Picture(
        "sweep",
        "Decoding settings: repetition and dependence on the prompt",
        "Up and to the left is better. No setting beats those on the frontier in both. The numbers "
        "are those of the table.",
        sweep_table(sweep),
        _frontier_chart(cells),
    )


def _kind(sweep: Sweep, place: int) -> str:
    if place == sweep.chosen:
        return "chosen"
    return "on the frontier" if place in sweep.frontier else "other"


def _averaged(points: Sequence[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """Return at most `count` points; each is the mean of neighbours, at the step of the last."""
    size = -(-len(points) // count)
    chunks = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(chunk[-1][0], sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def _loss_rows(
    training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]
) -> list[tuple[str, ...]]:
    """Return the losses for a table: those of each validation, or a few of the training."""
    if not validation:
        return [(f"{step:,}", f"{value:.3f}", "–") for step, value in _averaged(training, _ROWS)]
    rows: list[tuple[str, ...]] = []
    for step, value in validation:
        before = [loss for at, loss in training if at <= step]
        rows.append((f"{step:,}", f"{before[-1]:.3f}" if before else "–", f"{value:.3f}"))
    return rows


def _loss_chart(curves: dict[str, list[tuple[int, float]]]) -> Any:
    import altair as alt

    rows = [{"step": x, "loss": y, "on": on} for on, points in curves.items() for x, y in points]
    base = alt.Chart({"values": rows}).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, format=",d")),
        y=alt.Y("loss:Q", title="nats per supervised token", scale=alt.Scale(zero=False)),
        color=alt.Color("on:N", sort=None),
    )
    points = base.transform_filter("datum.on == 'validation'").mark_point()
    return (base.mark_line() + points).properties(width=WIDTH - 66, height=190)


def _difference_chart(rows: Sequence[dict[str, Any]]) -> Any:
    import altair as alt

    beyond = alt.Color(
        "beyond:N",
        title="differs by more than chance",
        scale=alt.Scale(domain=["yes", "no"], range=[COLOURS[1], COLOURS[5]]),
        legend=alt.Legend(orient="top", columns=2),
    )
    axis = alt.X("value:Q", title="difference, of 100 replies")
    base = alt.Chart({"values": rows}).encode(
        y=alt.Y("figure:N", sort=None, axis=row_labels()), color=beyond
    )
    points = base.mark_point().encode(
        x=axis,
        shape=alt.Shape(
            "beyond:N",
            title="differs by more than chance",
            scale=alt.Scale(domain=["yes", "no"], range=["circle", "diamond"]),
        ),
    )
    zero = alt.Chart({"values": [{"x": 0}]}).mark_rule(strokeWidth=1, color="black").encode(x="x:Q")
    intervals = base.mark_rule().encode(x="low:Q", x2="high:Q")
    return (zero + intervals + points).properties(width=ROW_WIDTH, height=34 * len(rows))


def _frontier_chart(cells: Sequence[dict[str, Any]]) -> Any:
    import altair as alt

    order = ["chosen", "on the frontier", "other"]
    base = alt.Chart({"values": cells}).encode(
        x=alt.X("x:Q", title="repeated sequences of four words, share"),
        y=alt.Y(
            "y:Q", title="dependence on the prompt, nats per token", scale=alt.Scale(zero=False)
        ),
    )
    line = base.transform_filter("datum.kind != 'other'").mark_line(strokeWidth=1, opacity=0.6)
    points = base.mark_point().encode(
        color=alt.Color(
            "kind:N", scale=alt.Scale(domain=order, range=[COLOURS[1], COLOURS[0], COLOURS[5]])
        ),
        shape=alt.Shape(
            "kind:N", scale=alt.Scale(domain=order, range=["diamond", "circle", "cross"])
        ),
    )
    numbers = base.mark_text(dx=7, dy=-8, align="left", fontSize=12).encode(text="number:N")
    return (line + points + numbers).properties(width=WIDTH - 60, height=260)
