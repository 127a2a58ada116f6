"""The report as one HTML file that needs nothing else: no network, no server, and no script."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chattune import __version__
from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison
from chattune.evaluate.sweeping import Sweep
from chattune.folders import write_bytes
from chattune.report import Finding
from chattune.report.charts import evaluation_pictures
from chattune.report.contrasts import (
    comparison_sentences,
    contrasts,
    sweep_sentences,
    verdict_sentences,
)
from chattune.report.curves import differences, frontier, loss_pictures
from chattune.report.definitions import definitions
from chattune.report.escaping import visible
from chattune.report.figures import meaning
from chattune.report.labels import labels, pair
from chattune.report.picture import Picture
from chattune.report.samples import PAGE_BYTES, Talk, talks, within
from chattune.report.summary import ABOUT_INTERVALS, CAVEAT, sentences
from chattune.report.tables import FEW, differing_settings_table, other_tables, settings_tables

_FOLDER = Path(__file__).parent


def write_page(
    path: Path,
    evaluations: Sequence[Evaluation],
    *,
    title: str,
    comparisons: Sequence[Comparison] = (),
    sweep: Sweep | None = None,
    findings: Sequence[Finding] = (),
    pictures: Sequence[Picture] = (),
) -> None:
    """Write a report to an HTML file; `pictures` follow those of the evaluations.

    The file holds its style, its charts as SVG and its script, and its own security policy forbids
    every request. Where there are more samples than a browser shows with ease, those with failures
    are kept, and the page says how many others were left out.
    """
    every = talks(evaluations)
    shown = within(every, PAGE_BYTES)
    script = (_FOLDER / "page.js").read_text("utf-8")
    html: str = _template().render(
        title=title,
        version=__version__,
        style=(_FOLDER / "page.css").read_text("utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        many=len(evaluations) > FEW,
        summaries=list(zip(labels(evaluations), map(sentences, evaluations), strict=True)),
        contrasts=contrasts(evaluations),
        notes=[CAVEAT, ABOUT_INTERVALS],
        findings=findings,
        pictures=[*evaluation_pictures(evaluations), *loss_pictures(evaluations), *pictures],
        tables=other_tables(evaluations),
        comparisons=[_comparison(c, number) for number, c in enumerate(comparisons, 1)],
        sweep=sweep and {"sentences": sweep_sentences(sweep), "picture": frontier(sweep)},
        talks=shown,
        left_out=len(every) - len(shown),
        choices=_choices(shown),
        definitions=definitions(evaluations, comparisons, sweep),
        settings=settings_tables(evaluations),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, html.encode())


def _template() -> Any:
    """Return the template, in which every value is escaped and its hidden characters shown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.globals["meaning"] = meaning
    return environment.get_template("page.html.jinja")


def _comparison(comparison: Comparison, number: int) -> dict[str, Any]:
    a, b = pair(comparison)
    return {
        "title": f"{b} compared with {a}",
        "sentences": comparison_sentences(comparison),
        "verdicts": verdict_sentences(comparison),
        "picture": differences(comparison, f"differences-{number}"),
        "settings": differing_settings_table(comparison),
    }


def _choices(shown: Sequence[Talk]) -> dict[str, Counter[str]]:
    """Return the failures and the kinds to filter by, each with the number of its prompts."""
    return {
        "failures": Counter(name for talk in shown for name in talk.failures),
        "kinds": Counter(talk.kind for talk in shown if talk.kind),
    }
