"""Resuming a run: its checkpoints, and the refusal to mix two recipes, bases or data sets."""

import logging
from pathlib import Path
from typing import Any

from chattune.errors import RunError
from chattune.recipe import Recipe
from chattune.run import CHECKPOINTS, FACTS, MANIFEST, RECIPE, Run, read_recipe
from chattune.tuning.planning import Plan

log = logging.getLogger(__name__)

# transformers writes straight into checkpoint-N and looks for that name later, so a kill while it
# saves leaves a checkpoint that seems complete. This file is created once the save is over.
COMPLETE = "complete"
_MAY_CHANGE = {"steps", "epochs", "patience"}  # of the training section, when a run is resumed


def latest_checkpoint(folder: Path) -> Path | None:
    """Return a run's newest checkpoint that was saved completely, or None."""
    complete = [file.parent for file in (folder / CHECKPOINTS).glob(f"checkpoint-*/{COMPLETE}")]
    return max(complete, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step after which a checkpoint was saved, from the folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def refuse_other_recipe(folder: Path, recipe: Recipe) -> None:
    """Raise RunError unless `folder` holds a run that was started with this recipe.

    Only the length of the training may differ.
    """
    if not (folder / RECIPE).is_file():
        raise RunError(f"--resume: {folder} holds no run to go on with; leave --resume out")
    before, now = (
        _flat(r.model_dump(exclude={"training": _MAY_CHANGE}))
        for r in (read_recipe(folder), recipe)
    )
    changed = [f"{k} (was {before[k]!r}, now {now[k]!r})" for k in now if now[k] != before[k]]
    if changed:
        raise RunError(
            f"--resume: the recipe differs from the one that {folder} was started with: "
            f"{'; '.join(changed)}; restore it, or start a new run"
        )


def refuse_other_origin(folder: Path, plan: Plan) -> None:
    """Raise RunError if the run was started with other weights or conversations than the plan's."""
    if not (folder / FACTS).is_file():  # the run stopped before step 1
        return
    before, now = Run(folder).facts, plan.origin
    for part, contents in (("base", "weights"), ("data", "conversations")):
        if before[part]["fingerprint"] != now[part]["fingerprint"]:
            raise RunError(
                f"--resume: {now[part].get('name') or now[part]['source']} no longer holds the "
                f"{contents} that {folder} was started with; restore them, or start a new run"
            )


def finished_run(folder: Path, plan: Plan) -> Run | None:
    """Return the run if it is finished and the plan asks for no more steps, or None.

    Raises RunError if more steps are asked for and the checkpoints are gone.
    """
    if not (folder / MANIFEST).is_file():
        return None
    # With an unchanged recipe a run of fewer steps is finished too: its patience ended it.
    if read_recipe(folder) != plan.recipe:
        latest = latest_checkpoint(folder)
        if latest is None:
            raise RunError(
                f"--resume: {folder} is finished and its checkpoints are gone; start a new run"
            )
        if step_of(latest) < plan.steps:
            return None
    log.info("%s is already finished", folder)
    return Run.open(folder)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the recipe's fields by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_section = name in ("data", "lora", "training")
        flat |= _flat(value, f"{name}.") if is_section else {prefix + name: value}
    return flat
