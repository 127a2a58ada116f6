"""The tables of a report, as texts that every form of it shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison
from chattune.evaluate.intervals import Figure
from chattune.evaluate.sweeping import Sweep
from chattune.report.figures import (
    SECTIONS,
    change,
    interval,
    meaning,
    probability,
    read,
    title,
    value,
)
from chattune.report.labels import labels, pair

Row = tuple[str, ...]

FEW = 3  # evaluations that are shown in full beside each other
_HASH_CHARACTERS = 16  # enough to compare hashes by; scores.json has all of them
_SWEEP_FIGURES = ("seq_rep_4", "own_prompt_nats", "any_failure")


@dataclass(frozen=True)
class Table:
    """A table: its caption, the titles of its columns, and its rows."""

    caption: str
    columns: Row
    rows: Sequence[Row]

    @property
    def is_grouped(self) -> bool:
        """Whether neighbouring rows have the same first cell, which is then a title above them."""
        return any(a[0] == b[0] for a, b in pairwise(self.rows))

    @property
    def header(self) -> Row:
        """The titles of the columns that are not titles of groups."""
        return self.columns[1:] if self.is_grouped else self.columns

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """The title of each group with its rows; where nothing is grouped, each row is a group."""
        if not self.is_grouped:
            return [("", [row]) for row in self.rows]
        return [
            (title, [row[1:] for row in rows])
            for title, rows in groupby(self.rows, key=lambda row: row[0])
        ]


def figure_table(evaluations: Sequence[Evaluation], section: str, only: str | None = None) -> Table:
    """Return the table of a section of figures, with no row if no evaluation has the section.

    `only` is the name of the single figure that is wanted, if not all are.
    """
    figures = [read(e.scores.get(section, {})) for e in evaluations]
    rows = [
        (title(name), label, value(name, f[name]), interval(name, f[name]), f"{f[name].n:,}")
        for name in dict.fromkeys(name for f in figures for name in f if only in (None, name))
        for label, f in zip(labels(evaluations), figures, strict=True)
        if name in f
    ]
    columns = ("Figure", "Model", "Value", "95 % interval", "n")
    return _without_model(evaluations, Table(SECTIONS[section], columns, rows))


def matrix(evaluations: Sequence[Evaluation], section: str) -> Table:
    """Return the table of a section with a row for each evaluation and a column for each figure."""
    figures = [read(e.scores.get(section, {})) for e in evaluations]
    names = list(dict.fromkeys(name for f in figures for name in f))
    rows = [
        (label, *(f"{value(n, f[n])} ({interval(n, f[n])})" if n in f else "–" for n in names))
        for label, f in zip(labels(evaluations), figures, strict=True)
        if f
    ]
    return Table(SECTIONS[section], ("Model", *map(title, names)), rows)


def turn_table(evaluations: Sequence[Evaluation]) -> Table:
    """Return the rates of the failures that occur, by turn of the conversation."""
    rows = [_part_row(*part) for part in _parts(evaluations, "by_turn")]
    columns = ("Failure", "Model", "Turn", "Replies", "95 % interval")
    return _without_model(evaluations, Table("Failures by turn", columns, rows))


def kind_table(evaluations: Sequence[Evaluation]) -> Table:
    """Return the rates of the failures by kind of prompt, for the kinds on which they occur."""
    rows = [_part_row(*part) for part in _parts(evaluations, "by_kind") if part[-1].value]
    columns = ("Failure", "Model", "Kind of prompt", "Replies", "95 % interval")
    return _without_model(evaluations, Table("Failures by kind of prompt", columns, rows))


def other_tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Return the tables of what no single chart shows."""
    sections = [s for s in SECTIONS if s != "failures" or len(evaluations) > FEW]
    tables = [figure_table(evaluations, section) for section in sections]
    return [table for table in (*tables, kind_table(evaluations)) if table.rows]


def occurring(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the names of the failures that any reply shows."""
    failures = [read(e.scores.get("failures", {})) for e in evaluations]
    names = dict.fromkeys(name for each in failures for name in each)
    return [n for n in names if any(n in each and each[n].value for each in failures)]


def settings_tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Return what the evaluations were made with: what all share, and what differs."""
    names = labels(evaluations)
    settings = [dict(_settings(evaluation)) for evaluation in evaluations]
    shared: list[Row] = []
    differing: list[Row] = []
    for setting in dict.fromkeys(name for each in settings for name in each):
        values = [each.get(setting, "–") for each in settings]
        if len(set(values)) == 1:
            shared.append((setting, values[0]))
        else:
            differing += [(setting, *both) for both in zip(names, values, strict=True)]
    tables = [
        Table("Settings that differ", ("Setting", "Model", "Value"), differing),
        Table("Settings of all" if differing else "Settings", ("Setting", "Value"), shared),
    ]
    return [table for table in tables if table.rows]


def comparison_table(comparison: Comparison) -> Table:
    """Return the figures of both evaluations, their differences and p-values."""
    rows = []
    for d in comparison.differences:
        values = (value(d.name, d.a), value(d.name, d.b))
        difference = change(d.name, d.difference)
        rows.append((title(d.name), *values, difference, probability(d.p)))
    columns = ("Figure", *pair(comparison), "Difference (95 % interval)", "p")
    return Table("Differences; those of counts are in 100 replies", columns, rows)


def differing_settings_table(comparison: Comparison) -> Table:
    """Return the settings in which two evaluations differ."""
    rows = [(name, *map(_text, values)) for name, values in comparison.settings.items()]
    return Table("Settings that differ", ("Setting", *pair(comparison)), rows)


def sweep_table(sweep: Sweep) -> Table:
    """Return the cells of a sweep, numbered from 1 as in its chart."""
    rows = []
    for place, cell in enumerate(sweep.cells):
        mark = " ✓" if place == sweep.chosen else " *" if place in sweep.frontier else ""
        figures = [value(name, cell.choosing[name]) for name in _SWEEP_FIGURES]
        other_half = value("any_failure", cell.reporting["any_failure"])
        setting = ", ".join(_text(cell.decoding[name]) for name in sweep.settings)
        rows.append((f"{place + 1}{mark}", setting, *figures, other_half))
    return Table(
        "✓ is chosen, * is on the frontier. Repetition is the share of repeated sequences of four "
        "words; dependence on the prompt is in nats per token.",
        (
            *("Cell", ", ".join(sweep.settings), "Repetition", "Dependence"),
            *("Any failure", "On the other half"),
        ),
        rows,
    )


def _parts(
    evaluations: Sequence[Evaluation], section: str
) -> Iterator[tuple[str, str, str, Figure]]:
    """Yield failure, label and rate for each part of a section such as by_turn."""
    for name in occurring(evaluations):
        for label, evaluation in zip(labels(evaluations), evaluations, strict=True):
            for part, figures in evaluation.scores.get(section, {}).items():
                if figure := read(figures).get(name):
                    yield name, label, part, figure


def _part_row(name: str, label: str, part: str, figure: Figure) -> Row:
    return meaning(name).title, label, part or "–", value(name, figure), interval(name, figure)


def _without_model(evaluations: Sequence[Evaluation], table: Table) -> Table:
    """Leave out the second column, which names the model, if there is only one evaluation."""
    if len(evaluations) > 1:
        return table
    columns, *rows = ((row[0], *row[2:]) for row in (table.columns, *table.rows))
    return Table(table.caption, columns, rows)


def _settings(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Yield the settings of an evaluation, for people, in the order in which they matter."""
    scores = evaluation.scores
    model = scores["model"]
    yield "model", f"{model['name']} ({model['kind']})"
    yield "base", f"{model['base']['name']}, {_short(model['base'].get('fingerprint'))}"
    if model.get("adapter"):
        yield "adapter", _short(model["adapter"])
    for name, setting in scores["decoding"].items():
        yield f"decoding: {name}", _text(setting)
    for name, facts in scores["prompts"].items():
        yield f"prompts: {name}", f"{facts['prompts']:,} prompts, {_short(facts['sha256'])}"
    yield "replies to each prompt", _text(scores["seeds"])
    yield "engine", _text(scores["engine"])
    yield "chat template", _short(scores["template"])
    yield "chattune", _text(scores["chattune"])


def _short(digest: Any) -> str:
    return _text(digest)[:_HASH_CHARACTERS]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    return "–" if value is None else str(value)
