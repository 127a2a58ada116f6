"""The study stage: models x data sets x decodings, tuned and evaluated in one command."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chattune.errors import RunError
from chattune.evaluate import Evaluation, evaluate
from chattune.evaluate.comparing import Comparison, compare
from chattune.evaluate.replying import Progress
from chattune.run import MANIFEST, Run, is_run
from chattune.study.plan import UNTUNED, Study, load_study
from chattune.tuning import tune
from chattune.tuning.progress import Unwatched, Watcher

__all__ = ["Cell", "Study", "comparisons", "load_study", "study"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One model, tuned on one data set, under one decoding, with its evaluation."""

    model: str
    data: str
    decoding: str
    evaluation: Evaluation


def study(
    plan: Study,
    output: str | Path,
    *,
    watcher: Watcher | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Cell]:
    """Tune and evaluate every cell of a study, and return them.

    The runs are written to `output`/runs/MODEL-DATA and the evaluations to
    `output`/MODEL-DATA/DECODING. What is finished is kept: the same call goes on with a study that
    was stopped. Raises RunError if a run in `output` has another recipe than the study says.
    """
    output = Path(output)
    cells = []
    for model, data, decoding in plan.cells():
        subject = plan.base_of(model)
        if data != UNTUNED:
            run = _tuned(plan, model, data, output, watcher or Unwatched())
            subject = str(run.folder)
        log.info("%s, %s, %s", model, data, decoding)
        evaluation = evaluate(
            subject,
            plan.prompts,
            output=output / f"{model}-{data}" / decoding,
            label=f"{model} {data}, {decoding}",
            seeds=plan.seeds,
            decoding=plan.decodings[decoding],
            progress=progress,
        )
        cells.append(Cell(model, data, decoding, evaluation))
    return cells


def comparisons(cells: list[Cell]) -> Iterator[Comparison]:
    """Compare cells that differ in one thing only: in the data, the model or the decoding.

    Along each of the three, the first one is compared with each other one.
    """
    for axis in ("data", "model", "decoding"):
        others = [name for name in ("data", "model", "decoding") if name != axis]
        lines: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in cells:
            lines.setdefault(tuple(getattr(cell, name) for name in others), []).append(cell)
        for first, *rest in lines.values():
            yield from (compare(first.evaluation, cell.evaluation) for cell in rest)


def _tuned(plan: Study, model: str, data: str, output: Path, watcher: Watcher) -> Run:
    """Return the run of a model and a data set, which is tuned or continued if need be."""
    folder = output / "runs" / f"{model}-{data}"
    recipe = plan.recipe_of(model, data)
    if (folder / MANIFEST).is_file():
        run = Run.open(folder)
        if run.recipe != recipe:
            raise RunError(
                f"{folder}: was tuned with another recipe than the study's; choose another --output"
            )
        return run
    log.info("tuning %s on %s", model, data)
    return tune(recipe, folder, resume=is_run(folder), watcher=watcher)
