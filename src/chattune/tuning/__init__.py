"""tune(): a recipe becomes a run folder."""

import gc
import importlib.metadata
import logging
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chattune import run as runs
from chattune.base import Base, find_base
from chattune.data import Prepared, prepare
from chattune.device import Device, find_device
from chattune.errors import Interrupted, OutputError, RecipeError, RunError
from chattune.folders import write_bytes, write_json
from chattune.generate import Decoding
from chattune.models import load_base, positions, shape_of
from chattune.models.card import model_card
from chattune.models.lora import add_lora, check_targets
from chattune.models.verify import logits_of, verify_run
from chattune.recipe import Recipe
from chattune.run import Run
from chattune.template import Template
from chattune.tuning.checkpoint import latest_checkpoint, step_of
from chattune.tuning.estimate import Estimate, estimate
from chattune.tuning.progress import Unwatched, Watcher

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import GenerationConfig

    from chattune.tuning.trainer import Result

__all__ = ["Plan", "plan", "tune"]

log = logging.getLogger(__name__)

_SAMPLES = 4
_SAMPLE_TOKENS = 96
_PACKAGES = ("chattune", "torch", "transformers", "trl", "peft", "datasets", "tokenizers")
# Of the settings that decide a step, these may differ when a run goes on.
_MAY_CHANGE = {"steps", "epochs", "patience"}


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to on this machine, before anything is computed."""

    recipe: Recipe
    base: Base
    device: Device
    prepared: Prepared
    steps: int
    estimate: Estimate
    decoding: Decoding

    def explain(self) -> list[str]:
        """Derived values, each with its reason."""
        training, needs = self.recipe.training, self.estimate
        a_step = training.batch_size * training.accumulation
        passes = self.steps * a_step / len(self.prepared.train)
        minutes = needs.seconds / 60
        return [
            f"device: {self.device.kind} ({self.device.name}, {self.device.threads} threads)",
            f"dtype: {'base in bf16, adapter in fp32' if self.device.bf16 else 'fp32'}, because "
            + self.device.reasons["bf16"],
            f"steps: {self.steps:,} of {a_step} conversations, {passes:.1f} passes over the data",
            f"parameters: {needs.parameters / 1e6:,.1f} M, trained {needs.trainable / 1e6:,.2f} M",
            f"memory: about {needs.memory / 1e9:.1f} GB of {self.device.memory / 1e9:.1f} GB"
            + (", activations recomputed to save it" if needs.checkpointing else ""),
            f"layout: packs of at most {needs.token_budget:,} tokens, no padding",
            f"time: about {minutes:,.0f} minutes, from a short measurement of this machine",
        ]


def plan(recipe: Recipe) -> Plan:
    """Check everything that can be checked before step 1, and prepare the data.

    Raises BaseError, DataError or RecipeError.
    """
    from chattune.tuning.trainer import total_steps

    base = find_base(recipe.base)
    decoding = Decoding.of(base.folder).but(max_new_tokens=_SAMPLE_TOKENS)
    shape = shape_of(base)
    check_targets(recipe.lora, shape)
    prepared = prepare(recipe)
    device = find_device()
    if recipe.training.patience is not None and not len(prepared.validation):
        raise RecipeError(
            "training.patience: nothing is held out to see the loss on; raise data.validation"
        )
    steps = total_steps(recipe, len(prepared.train))
    report = prepared.report
    needs = estimate(
        recipe,
        shape,
        device,
        steps=steps,
        tokens_a_row=report.tokens / report.kept,
        supervised=report.supervised_tokens / report.tokens,
    )
    return Plan(recipe, base, device, prepared, steps, needs, decoding)


def tune(
    recipe: Recipe, output: str | Path, *, resume: bool = False, watcher: Watcher | None = None
) -> Run:
    """Tune the recipe's base on its conversations; the finished run lies in `output`.

    With `resume` a run that was stopped goes on from its last checkpoint, and a finished one goes
    on if the recipe now asks for more steps. Raises UserError before anything is written if the
    recipe cannot be followed, Interrupted after a signal (the state is saved), and
    VerificationError if what was saved is not what was trained.
    """
    import torch

    from chattune.tuning.trainer import train

    folder = Path(output)
    if resume:
        _refuse_other_recipe(folder, recipe)
    else:
        runs.refuse_run(folder)
    ready = plan(recipe)
    if resume:
        _refuse_other_origin(folder, ready)
    if resume and (done := _nothing_left(folder, recipe, ready.steps)):
        return done
    base = load_base(ready.base, ready.device, ready.device.base_dtype())
    model = add_lora(base, recipe.lora, recipe.seed)
    _open_folder(folder, ready)
    result, signum = train(
        model,
        ready.prepared,
        recipe,
        folder,
        ready.device,
        watcher or Unwatched(),
        token_budget=ready.estimate.token_budget,
        checkpointing=ready.estimate.checkpointing,
    )
    if signum is not None:
        raise Interrupted(
            f"stopped after step {result.steps} of {ready.steps}; all is saved", signum
        )
    # From here on in fp32, whose results do not depend on kernels and threads: bf16's do.
    probe = _save(folder, ready, model.float())
    del base, model  # the fresh process that loads the run needs the room
    gc.collect()
    if ready.device.kind == "cuda":
        torch.cuda.empty_cache()
    return _prove_and_seal(folder, ready, result, *probe)


def _save(folder: Path, ready: Plan, model: "PeftModel") -> tuple[list[int], "torch.Tensor"]:
    """Write adapter, tokenizer, samples and plot; a prompt and the model's logits for it."""
    from chattune.tuning.plot import loss_plot
    from chattune.tuning.samples import sample_replies

    template = ready.prepared.template
    model.eval()
    runs.write_folder(folder, model.save_pretrained)
    runs.write_folder(folder, template.tokenizer.save_pretrained)
    runs.write_folder(folder, _generation_config(template, ready.decoding).save_pretrained)
    questions = [c.messages[: c.roles.index("assistant")] for c in ready.prepared.examples]
    replies = sample_replies(
        model, template, questions[:_SAMPLES], ready.decoding, positions(ready.base)
    )
    write_json(folder / runs.SAMPLES, replies)
    write_json(folder / runs.DATA, ready.prepared.report.to_json())
    write_bytes(folder / runs.LOSS_PLOT, loss_plot(folder))
    probe = template.prompt(questions[0])
    return probe, logits_of(model, probe)


def _prove_and_seal(
    folder: Path, ready: Plan, result: "Result", probe: list[int], in_memory: "torch.Tensor"
) -> Run:
    """Compare what lies on disk with what was in memory; then facts, card and manifest."""
    difference = verify_run(folder, probe, in_memory, ready.device.base_dtype())
    write_json(folder / runs.FACTS, _facts(ready, result, probe, difference))
    write_bytes(folder / runs.CARD, model_card(Run(folder)).encode())
    log.info("saved, loaded again in a fresh process: logits differ by %.1g", difference)
    return runs.seal(folder)


def _generation_config(template: Template, decoding: Decoding) -> "GenerationConfig":
    """For other tools: generate() on the saved model then samples and stops as chattune does."""
    from transformers import GenerationConfig

    sampling = {
        "temperature": decoding.temperature,
        "top_k": decoding.top_k,
        "top_p": decoding.top_p,
        "min_p": decoding.min_p or None,
    }
    return GenerationConfig(
        do_sample=not decoding.greedy,
        **({} if decoding.greedy else sampling),  # transformers refuses both
        repetition_penalty=decoding.repetition_penalty,
        eos_token_id=sorted(template.end_ids),
        bos_token_id=template.tokenizer.bos_token_id,
    )


def _origin(ready: Plan) -> dict[str, dict[str, Any]]:
    """What a run is made of, known before step 1."""
    report = ready.prepared.report
    return {
        "base": {"name": ready.base.name, "fingerprint": ready.base.fingerprint()},
        "data": {
            key: getattr(report, key)
            for key in ("source", "format", "train", "validation", "tokens", "supervised_tokens")
        }
        | {"fingerprint": report.fingerprint},
    }


def _facts(ready: Plan, result: "Result", probe: list[int], difference: float) -> dict[str, Any]:
    return {
        **_origin(ready),
        "device": asdict(ready.device),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "result": asdict(result),
        "decoding": ready.decoding.model_dump(exclude={"seed"}),
        "probe_ids": probe,
        "reload_difference": difference,
    }


def _open_folder(folder: Path, ready: Plan) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        runs.unseal(folder)
        (folder / runs.CHECKPOINTS).mkdir(exist_ok=True)
        write_bytes(folder / runs.RECIPE, ready.recipe.to_yaml().encode())
        write_json(folder / runs.FACTS, _origin(ready))
    except OSError as error:
        raise OutputError(f"output {folder}: cannot be written to ({error.strerror})") from error


def _refuse_other_recipe(folder: Path, recipe: Recipe) -> None:
    """Going on with other settings would be neither run."""
    if not (folder / runs.RECIPE).is_file():
        raise RunError(f"--resume: {folder} holds no run to go on with; leave --resume out")
    before, now = (
        {**_flat(r.model_dump(exclude={"training": _MAY_CHANGE}))}
        for r in (runs.read_recipe(folder), recipe)
    )
    changed = [f"{k} (was {before[k]!r}, now {now[k]!r})" for k in now if now[k] != before[k]]
    if changed:
        raise RunError(
            f"--resume: the recipe differs from the one {folder} was started with: "
            + "; ".join(changed)
        )


def _refuse_other_origin(folder: Path, ready: Plan) -> None:
    """Going on over other conversations or weights would be neither run."""
    if not (folder / runs.FACTS).is_file():  # stopped before step 1
        return
    before, now = Run(folder).facts, _origin(ready)
    for name, remedy in (("base", "weights"), ("data", "conversations")):
        if before[name]["fingerprint"] != now[name]["fingerprint"]:
            raise RunError(
                f"--resume: {now[name].get('name') or now[name]['source']} no longer holds the "
                f"{remedy} that {folder} was started with; start a new run"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = key in ("data", "lora", "training") and isinstance(value, dict)
        flat |= _flat(value, f"{key}.") if inner else {prefix + key: value}
    return flat


def _nothing_left(folder: Path, recipe: Recipe, steps: int) -> Run | None:
    """The run itself, if it is finished and no more steps are asked for."""
    if not (folder / runs.MANIFEST).is_file():
        return None
    last, same = latest_checkpoint(folder), runs.read_recipe(folder) == recipe
    if last is None and not same:
        raise RunError(f"--resume: {folder} is finished, and its checkpoints are gone")
    if last is not None and step_of(last) < steps and not same:
        return None  # with the same recipe it was stopped early, by its patience
    log.info("%s is finished", folder)
    return Run.open(folder)
