"""The tuning stage: tune() turns a recipe into a run folder."""

import gc
import logging
from pathlib import Path

from chattune import run as runs
from chattune.errors import Interrupted
from chattune.models import load_base
from chattune.models.lora import add_lora
from chattune.models.verify import logits_of, verify_run
from chattune.recipe import Recipe
from chattune.run import Run
from chattune.tuning.planning import Plan, plan
from chattune.tuning.progress import Unwatched, Watcher
from chattune.tuning.resuming import finished_run, refuse_other_origin, refuse_other_recipe
from chattune.tuning.saving import open_folder, probe_prompt, save_facts, save_model

__all__ = ["Plan", "plan", "tune"]

log = logging.getLogger(__name__)


def tune(
    recipe: Recipe, output: str | Path, *, resume: bool = False, watcher: Watcher | None = None
) -> Run:
    """Tune the recipe's base on its conversations and return the finished run in `output`.

    With `resume`, a run that was stopped goes on from its last checkpoint, and a finished one goes
    on if the recipe now asks for more steps. Raises UserError before anything is written if the
    recipe cannot be followed, Interrupted after a signal (the state is saved), and
    VerificationError if the saved run does not compute what the trained model did.
    """
    from chattune.tuning.trainer import train

    folder = Path(output)
    if resume:
        refuse_other_recipe(folder, recipe)
    else:
        runs.check_new_run(folder)
    planned = plan(recipe)
    if resume:
        refuse_other_origin(folder, planned)
        if run := finished_run(folder, planned):
            return run
    device = planned.device
    base = load_base(planned.base, device, device.base_dtype())
    model = add_lora(base, recipe.lora, recipe.seed)
    open_folder(folder, planned)
    result, signum = train(model, planned, folder, watcher or Unwatched())
    if signum is not None:
        raise Interrupted(
            f"stopped after step {result.steps} of {planned.steps}; its state is saved", signum
        )
    # The rest is in fp32, because results in bf16 depend on kernels and the number of threads.
    model = model.float()
    save_model(folder, planned, model)
    probe = probe_prompt(planned)
    logits = logits_of(model, probe)
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
