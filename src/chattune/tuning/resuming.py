"""Resuming a run: its checkpoints, and the refusal to mix two recipes, bases or data sets."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from chattune.errors import RunError
from chattune.folders import write_json
from chattune.recipe import Recipe
from chattune.run import (
    CHECKPOINTS,
    FACTS,
    MANIFEST,
    RECIPE,
    Run,
    read_recipe,
    size_and_hash,
)
from chattune.tuning.planning import Plan, total_steps

log = logging.getLogger(__name__)

# transformers writes straight into checkpoint-N and looks for that name later, so a kill while it
# saves leaves a checkpoint that seems complete. This file lists the files with their hashes, and is
# written once the save is over.
COMPLETE = "complete"
_MAY_CHANGE = {"steps", "epochs", "patience"}  # of the training section, when a run is resumed


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint from which a run can go on, or None.

    Its files must be those that were saved, and so must those of the checkpoint with the best
    adapter, which the end of the training needs.
    """
    return next((c for c in reversed(_checkpoints(folder)) if _is_usable(c)), None)


def discard_damaged(folder: Path) -> None:
    """Remove the checkpoints after the latest usable one, whose steps have to be done again."""
    latest = latest_checkpoint(folder)
    for checkpoint in reversed(_checkpoints(folder)):
        if checkpoint == latest:
            break
        log.warning("%s is damaged, or not all of it was saved; it is not used", checkpoint)
        shutil.rmtree(checkpoint)


def mark_complete(checkpoint: Path) -> None:
    """Write the list of a checkpoint's files with their sizes and hashes, once all are saved."""
    files = sorted(f for f in checkpoint.rglob("*") if f.is_file() and f.name != COMPLETE)
    listed = {str(f.relative_to(checkpoint)): size_and_hash(f) for f in files}
    write_json(checkpoint / COMPLETE, listed)


def best_of(checkpoint: Path) -> Path:
    """Return the checkpoint with the lowest validation loss so far, or this one without any."""
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    return checkpoint.parent / Path(state["best_model_checkpoint"] or checkpoint).name


def _checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, damaged ones included, in the order of their steps."""
    found = (folder / CHECKPOINTS).glob("checkpoint-*")
    return sorted((c for c in found if c.name[len("checkpoint-") :].isdecimal()), key=step_of)


def _is_usable(checkpoint: Path) -> bool:
    return _is_intact(checkpoint) and _is_intact(best_of(checkpoint))


def _is_intact(checkpoint: Path) -> bool:
    """Return whether all files of a checkpoint are those that were saved."""
    try:
        listed = json.loads((checkpoint / COMPLETE).read_text("utf-8"))
        return bool(listed) and all(
            size_and_hash(checkpoint / name) == expected for name, expected in listed.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step after which a checkpoint was saved, from the folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def refuse_other_recipe(folder: Path, recipe: Recipe) -> None:
    """Raise RunError unless `folder` holds a run that was started with this recipe.

    Only the length of the training may differ, and the place of the base, whose weights are
    compared by refuse_other_origin.
    """
    if not (folder / RECIPE).is_file():
        raise RunError(f"--resume: {folder} holds no run to go on with; leave --resume out")
    before, now = (
        _flat(r.model_dump(exclude={"base": True, "training": _MAY_CHANGE}))
        for r in (read_recipe(folder), recipe)
    )
    changed = [f"{k} (was {before[k]!r}, now {now[k]!r})" for k in now if now[k] != before[k]]
    if changed:
        raise RunError(
            f"--resume: the recipe differs from the one that {folder} was started with: "
            f"{'; '.join(changed)}; restore it, or start a new run"
        )


def facts_of_start(folder: Path) -> dict[str, Any] | None:
    """Return the facts that a run was started with, or None if none of its steps is saved.

    Raises RunError if they are damaged.
    """
    return None if latest_checkpoint(folder) is None else _read_facts(folder)


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        return {part: facts[part] for part in ("base", "data", "device", "training")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"--resume: {folder / FACTS} is damaged and does not say how the run was started "
            f"({error!r}); start a new run"
        ) from error


def refuse_other_origin(folder: Path, plan: Plan) -> None:
    """Raise RunError if the run was started with other weights, conversations or device."""
    if not (folder / FACTS).is_file():  # the run stopped before step 1
        return
    before, now = _read_facts(folder), plan.origin
    for part, contents in (("base", "weights"), ("data", "conversations")):
        if before[part]["fingerprint"] != now[part]["fingerprint"]:
            origin = before[part].get("origin")
            raise RunError(
                f"--resume: {now[part].get('name') or now[part]['source']} no longer holds the "
                f"{contents} that {folder} was started with{f' ({origin})' if origin else ''}; "
                "restore them, or start a new run"
            )
    kinds = before["device"]["kind"], now["device"]["kind"]
    if kinds[0] != kinds[1] and latest_checkpoint(folder) is not None:
        raise RunError(
            f"--resume: {folder} was started on {kinds[0]} and this machine has {kinds[1]}, where "
            "dropout draws other numbers and the steps would be other ones; go on where it was "
            "started, or start a new run"
        )


def continued(folder: Path, plan: Plan, *, extend: bool) -> Plan:
    """Return the plan of the run in `folder`, with a note if its number of steps has changed.

    Raises RunError if more steps are done than the plan has. Also raises it if another number of
    steps changes the learning rate of each step, unless `extend` says to go on all the same.
    """
    done = _steps_done(folder)
    if done > plan.steps:
        raise RunError(
            f"--resume: {folder} has done {done:,} steps, and the recipe asks for {plan.steps:,}; "
            f"ask for at least {done:,}, or start a new run"
        )
    before = total_steps(read_recipe(folder), len(plan.prepared.train))
    if not done or before == plan.steps:
        return plan
    schedule = plan.recipe.training.schedule
    if schedule != "constant" and not extend:
        raise RunError(
            f"--resume: {folder} was started for {before:,} steps and has done {done:,}; with "
            f"{plan.steps:,} the {schedule} learning rate would jump there, and the result would "
            f"not be that of {plan.steps:,} steps from the start; add --extend to accept that, or "
            "start a new run"
        )
    change = {"after_step": done, "before": before, "now": plan.steps}
    return replace(plan, steps_changed=(*plan.steps_changed, change))


def _steps_done(folder: Path) -> int:
    """Return the number of steps whose result is saved in a run folder, finished or not."""
    if (folder / MANIFEST).is_file():
        return int(Run(folder).facts["result"]["steps"])
    latest = latest_checkpoint(folder)
    return step_of(latest) if latest else 0


def is_trained(checkpoint: Path, plan: Plan) -> bool:
    """Return whether training ended with this checkpoint: by its last step, or by patience."""
    patience = plan.recipe.training.patience
    return step_of(checkpoint) >= plan.steps or (
        patience is not None and validations_in_vain(checkpoint) >= patience
    )


def validations_in_vain(checkpoint: Path) -> int:
    """Return how many validations before a checkpoint were, in a row, without a lower loss."""
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    saved = state["stateful_callbacks"].get("EarlyStoppingCallback", {})
    return int(saved.get("attributes", {}).get("early_stopping_patience_counter", 0))


def finished_run(folder: Path, plan: Plan) -> Run | None:
    """Return the run if it is finished and the plan asks for no more steps, or None.

    Raises RunError if more steps are asked for and the checkpoints are gone.
    """
    if not (folder / MANIFEST).is_file():
        return None
    # With an unchanged recipe a run of fewer steps is finished too: its patience ended it.
    if read_recipe(folder).model_copy(update={"base": plan.recipe.base}) != plan.recipe:
        latest = latest_checkpoint(folder)
        if latest is None:
            raise RunError(
                f"--resume: {folder} is finished and its checkpoints are gone or damaged; start a "
                "new run"
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
