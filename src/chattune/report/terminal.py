"""Evaluations, comparisons and sweeps for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison
from chattune.evaluate.sweeping import Sweep
from chattune.report import Finding
from chattune.report.contrasts import comparison_sentences, sweep_sentences, verdict_sentences
from chattune.report.escaping import visible
from chattune.report.figures import SECTIONS
from chattune.report.summary import CAVEAT, sentences
from chattune.report.tables import (
    Table,
    comparison_table,
    differing_settings_table,
    figure_table,
    sweep_table,
)


def as_table(evaluation: Evaluation) -> RenderableType:
    """Lay out an evaluation: what its figures say, and the figures with intervals."""
    tables = [figure_table([evaluation], section) for section in SECTIONS]
    rows = [row for table in tables for row in table.rows]
    return Group(
        _list(sentences(evaluation)),
        "",
        _table(Table(evaluation.label, tables[0].columns, rows)),
        Text(CAVEAT, style="dim"),
    )


def as_comparison(comparison: Comparison) -> RenderableType:
    """Lay out a comparison: what differs, all figures of both sides, and their settings."""
    shown: list[RenderableType] = [_list(comparison_sentences(comparison))]
    if verdicts := verdict_sentences(comparison):
        shown += ["", Text("What a judge model prefers", style="bold"), _list(verdicts)]
    shown += ["", _table(comparison_table(comparison))]
    if comparison.settings:
        shown.append(_table(differing_settings_table(comparison)))
    return Group(*shown)


def as_sweep(sweep: Sweep) -> RenderableType:
    """Lay out a sweep: what was chosen, and all its cells."""
    return Group(_list(sweep_sentences(sweep)), "", _table(sweep_table(sweep)))


def as_findings(findings: Sequence[Finding]) -> RenderableType:
    """Lay out what a diagnosis found: each cause with its evidence, place and remedy."""
    if not findings:
        return Text("No cause of failures was found.")
    return Group(*map(_finding, findings))


def _finding(finding: Finding) -> RenderableType:
    remedy = Text.assemble(("What helps: ", "bold"), visible(finding.remedy))
    place = Text(f"Where: {visible(finding.place)}", style="dim")
    command = [Text(f"  {visible(finding.command)}")] if finding.command else []
    title = Text(visible(finding.title), style="bold")
    return Padding(Group(title, _list(finding.evidence), remedy, place, *command), (0, 0, 1, 0))


def _list(sentences: Sequence[str]) -> RenderableType:
    grid = RichTable.grid(padding=(0, 1))
    for sentence in sentences:
        grid.add_row("•", Text(visible(sentence)))
    return grid


def _table(table: Table) -> RenderableType:
    title = Text(visible(table.caption), style="bold")
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(Text(visible(column)), justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*(Text(visible(cell)) for cell in row))
    return shown
