"""The report as Markdown, for a README, an issue or a wiki."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison
from chattune.evaluate.sweeping import Sweep
from chattune.folders import write_bytes
from chattune.report import Finding
from chattune.report.contrasts import (
    comparison_sentences,
    contrasts,
    sweep_sentences,
    verdict_sentences,
)
from chattune.report.definitions import definitions
from chattune.report.escaping import fenced, markdown
from chattune.report.figures import SECTIONS, meaning
from chattune.report.labels import labels, pair
from chattune.report.samples import failing, talks
from chattune.report.summary import ABOUT_INTERVALS, CAVEAT, sentences
from chattune.report.tables import (
    FEW,
    Table,
    comparison_table,
    differing_settings_table,
    figure_table,
    kind_table,
    matrix,
    settings_tables,
    sweep_table,
    turn_table,
)

SAMPLES = 10  # failing replies that are quoted


def write_markdown(
    path: Path,
    evaluations: Sequence[Evaluation],
    *,
    title: str,
    comparisons: Sequence[Comparison] = (),
    sweep: Sweep | None = None,
    findings: Sequence[Finding] = (),
) -> None:
    """Write a report as Markdown: what the page has, without charts and with few samples."""
    blocks = [
        f"# {markdown(title)}",
        *_summary(evaluations, sweep),
        *_findings(findings),
        *_figures(evaluations),
        *_comparisons(comparisons),
        *([] if sweep is None else ["## Decoding", _table(sweep_table(sweep))]),
        *_samples(evaluations),
        "## Definitions",
        *(
            f"**{markdown(name)}.** {markdown(' '.join(paragraphs))}"
            for name, paragraphs in definitions(evaluations, comparisons, sweep)
        ),
        *(["## Settings"] if evaluations else []),
        *map(_table, settings_tables(evaluations)),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, ("\n\n".join(blocks) + "\n").encode())


def _summary(evaluations: Sequence[Evaluation], sweep: Sweep | None) -> Iterator[str]:
    yield "## Summary"
    for label, evaluation in zip(labels(evaluations), evaluations, strict=True):
        yield f"### {markdown(label)}"
        yield _list(sentences(evaluation))
    if found := contrasts(evaluations):
        yield "### What differs"
        yield _list(found)
    if sweep is not None:
        yield _list(sweep_sentences(sweep))
    yield f"{CAVEAT} {ABOUT_INTERVALS}"


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    if findings:
        yield "## Causes and remedies"
    for finding in findings:
        yield f"### {markdown(finding.title)}"
        yield _list(finding.evidence)
        yield f"**What helps:** {markdown(finding.remedy)} (where: {markdown(finding.place)})"
        if finding.command:
            yield fenced(finding.command)


def _figures(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    of_section = matrix if len(evaluations) > 1 else figure_table
    tables = [of_section(evaluations, section) for section in SECTIONS]
    if len(evaluations) <= FEW:
        tables += [turn_table(evaluations), kind_table(evaluations)]
    if tables := [table for table in tables if table.rows]:
        yield "## Figures"
    yield from map(_table, tables)


def _comparisons(comparisons: Sequence[Comparison]) -> Iterator[str]:
    if comparisons:
        yield "## Comparisons"
    for comparison in comparisons:
        a, b = pair(comparison)
        yield f"### {markdown(b)} compared with {markdown(a)}"
        yield _list(comparison_sentences(comparison))
        if verdicts := verdict_sentences(comparison):
            yield "What a judge model prefers:"
            yield _list(verdicts)
        yield _table(comparison_table(comparison))
        if comparison.settings:
            yield _table(differing_settings_table(comparison))


def _samples(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    found = list(failing(talks(evaluations)))
    if not found:
        return
    yield "## Samples"
    yield f"The first {min(len(found), SAMPLES)} of {len(found):,} replies that show a failure."
    for talk, turn, answer in islice(found, SAMPLES):
        titles = ", ".join(meaning(name).title for name in answer.judged.failures)
        yield f"### {markdown(talk.prompt)}"
        yield f"**{markdown(answer.label)}: {markdown(titles)}**"
        yield f"> {markdown(turn.question)}"
        yield fenced(answer.judged.sample.reply)
        marked = [part.text for part in answer.parts if part.failures and part.text.strip()]
        if marked and marked != [answer.judged.sample.reply]:
            yield f"Seen in: {'; '.join(f'“{markdown(text)}”' for text in marked)}"


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(sentence)}" for sentence in sentences)


def _table(table: Table) -> str:
    cells = [list(map(markdown, row)) for row in (table.columns, *table.rows)]
    cells.insert(1, ["---"] * len(table.columns))
    lines = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return f"**{markdown(table.caption)}**\n\n{lines}"
