"""The tuning stage: tune() turns a recipe into a run folder."""

import gc
import logging
from pathlib import Path

from chattune import run as runs
from chattune.errors import Interrupted, RunError, TrainingDiverged
from chattune.models import load_base
from chattune.models.lora import add_lora
from chattune.models.verify import logits_of, verify_run
from chattune.recipe import RecipeLike, as_recipe
from chattune.run import Run
from chattune.tuning.lock import refuse_owned, sole_owner
from chattune.tuning.planning import Plan, plan
from chattune.tuning.progress import Unwatched, Watcher
from chattune.tuning.resuming import (
    continued,
    facts_of_start,
    finished_run,
    refuse_other_origin,
    refuse_other_recipe,
)
from chattune.tuning.saving import (
    open_folder,
    probe_prompt,
    reporting_full_disk,
    save_facts,
    save_model,
)

__all__ = ["Plan", "plan", "tune"]

log = logging.getLogger(__name__)


def tune(
    recipe: RecipeLike,
    output: str | Path,
    *,
    resume: bool = False,
    extend: bool = False,
    watcher: Watcher | None = None,
) -> Run:
    """Tune the recipe's base on its conversations and return the finished run in `output`.

    With `resume`, a run that was stopped goes on from its last checkpoint, and a finished one goes
    on if the recipe now asks for more steps. Under a schedule whose learning rates depend on the
    number of steps, another number is refused unless `extend` accepts that the rate jumps. If all
    steps are done, the run is only saved and verified.

    Raises UserError before anything is written if the recipe cannot be followed, Interrupted after
    a signal (the state is saved), TrainingDiverged if a loss is no longer finite, OutputError if
    the disk is full, and VerificationError if the saved run does not compute what the trained model
    did. While one process tunes into `output`, RunError keeps others from doing the same.
    """
    recipe, folder = as_recipe(recipe), Path(output)
    if extend and not resume:
        raise RunError("--extend: goes on with an earlier run; add --resume, or leave it out")
    refuse_owned(folder)
    if resume:
        refuse_other_recipe(folder, recipe)
    else:
        runs.check_new_run(folder)
    with sole_owner(folder):
        planned = plan(recipe, facts_of_start(folder) if resume else None)
        if resume:
            refuse_other_origin(folder, planned)
            planned = continued(folder, planned, extend=extend)
            if run := finished_run(folder, planned):
                return run
        with reporting_full_disk(folder, planned):
            return _train_and_save(planned, folder, watcher or Unwatched())


def _train_and_save(planned: Plan, folder: Path, watcher: Watcher) -> Run:
    """Follow the plan in a folder that no other process writes to; see tune()."""
    from chattune.tuning.trainer import train

    device, recipe = planned.device, planned.recipe
    base = load_base(planned.base, device, device.base_dtype())
    model = add_lora(base, recipe.lora, recipe.seed)
    open_folder(folder, planned)
    result, signum = train(model, planned, folder, watcher)
    if signum is not None:
        raise Interrupted(
            f"stopped after step {result.steps} of {planned.steps}; its state is saved", signum
        )
    if result.stopped_early:
        log.info(
            "stopped early after step %d of %d: the validation loss fell no more",
            result.steps,
            planned.steps,
        )
    probe = probe_prompt(planned)
    logits = logits_of(model, probe)
    if not logits.isfinite().all():
        raise TrainingDiverged(
            f"step {result.best_step}: the trained model's logits are not finite numbers; lower "
            f"training.learning_rate ({recipe.training.learning_rate:g}) and start a new run"
        )
    save_model(folder, planned, model)
    del base, model
    _free_memory()  # for the process that loads the run again
    difference = verify_run(folder, probe, logits, device.base_dtype())
    log.info("saved and loaded again in a fresh process: logits differ by %.1g", difference)
    save_facts(folder, planned, result, probe, difference)
    return runs.seal(folder)


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
