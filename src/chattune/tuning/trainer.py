"""The training loop: TRL's SFTTrainer, and the only file that knows its names.

Everything that decides the result is set here on purpose, because TRL's own defaults differ from
what a recipe says (bf16 and gradient checkpointing on, length 1024).
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer

from chattune.data import Prepared
from chattune.device import Device
from chattune.folders import write_bytes
from chattune.models.packing import prepare_packing
from chattune.recipe import Recipe
from chattune.run import ADAPTER, CHECKPOINTS, METRICS
from chattune.template import IGNORED_LABEL
from chattune.tuning.batches import collate, passes
from chattune.tuning.checkpoint import COMPLETE, latest_checkpoint, step_of
from chattune.tuning.interrupt import Interruption
from chattune.tuning.loss import SupervisedLoss
from chattune.tuning.progress import Watcher

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

_VALIDATED_AT_ONCE = 64
# HF's "constant" leaves warm-up out without a word; every schedule of ours warms up.
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class Result:
    """How the training went: losses in nats a supervised token; time of the last stretch, in s."""

    steps: int
    best_step: int
    train_loss: float
    validation_loss: float | None
    seconds: float
    tokens_per_s: float


def total_steps(recipe: Recipe, conversations: int) -> int:
    """Optimiser steps of a recipe on so many training conversations."""
    training = recipe.training
    if training.steps is not None:
        return training.steps
    a_step = training.batch_size * training.accumulation
    assert training.epochs is not None  # the recipe holds one of the two
    return max(1, math.ceil(training.epochs * math.ceil(conversations / a_step)))


def train(
    model: "PeftModel",
    prepared: Prepared,
    recipe: Recipe,
    folder: Path,
    device: Device,
    watcher: Watcher,
    *,
    token_budget: int,
    checkpointing: bool,
) -> tuple[Result, int | None]:
    """Train the adapter in place, from the last checkpoint in `folder` if there is one.

    Ends with the adapter of the lowest validation loss in the model (the last one where nothing is
    held out). Returns the result, and the signal that stopped it early, if one did: the last
    step's state is then in a checkpoint.
    """
    steps = total_steps(recipe, len(prepared.train))
    last = latest_checkpoint(folder)
    with Interruption() as interruption, _without_pad_token(prepared) as tokenizer:
        meter = _Meter()
        journal = _Journal(folder, watcher, interruption, meter)
        trainer = _Trainer(
            token_budget=token_budget,
            meter=meter,
            model=model,
            args=_arguments(
                recipe, folder, device, steps, bool(len(prepared.validation)), checkpointing
            ),
            train_dataset=prepared.train,
            eval_dataset=prepared.validation if len(prepared.validation) else None,
            processing_class=tokenizer,
            callbacks=[journal, *_early_stopping(recipe, last)],
        )
        trainer.remove_callback(PrinterCallback)
        if last is not None and step_of(last) >= steps:  # stopped between training and the end
            trainer.state = _take_best(model, last)
        else:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    state = trainer.state
    best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
    result = Result(
        steps=state.global_step,
        best_step=int(best.rpartition("-")[2]) if best else state.global_step,
        train_loss=_last_loss(folder),
        validation_loss=state.best_metric,
        seconds=round(meter.seconds, 2),
        tokens_per_s=round(meter.tokens / meter.seconds, 1) if meter.seconds else 0.0,
    )
    return result, interruption.signum


def _take_best(model: "PeftModel", last: Path) -> TrainerState:
    """Put the best adapter that a finished training saved into the model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = TrainerState.load_from_json(str(last / "trainer_state.json"))
    best = last.parent / Path(state.best_model_checkpoint or last).name
    set_peft_model_state_dict(model, load_file(best / ADAPTER[1]))
    return state


def _last_loss(folder: Path) -> float:
    lines = map(json.loads, (folder / METRICS).read_text("utf-8").splitlines())
    return [float(line["loss"]) for line in lines if "loss" in line][-1]


def _arguments(
    recipe: Recipe, folder: Path, device: Device, steps: int, validate: bool, checkpointing: bool
) -> SFTConfig:
    training = recipe.training
    config = SFTConfig(
        output_dir=str(folder / CHECKPOINTS),
        max_steps=steps,
        per_device_train_batch_size=training.batch_size * training.accumulation,
        gradient_accumulation_steps=1,  # the step is cut into passes by length instead
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULES[training.schedule],
        warmup_steps=min(math.ceil(training.warmup_ratio * steps), steps - 1),
        optim="adamw_torch_fused" if device.kind == "cuda" else "adamw_torch",
        max_grad_norm=1.0,
        bf16=False,  # the frozen base is in bf16 itself; autocast would convert it each step
        use_cpu=device.kind == "cpu",
        gradient_checkpointing=checkpointing,
        max_length=None,  # prepare() has fitted every row
        dataset_kwargs={"skip_prepare_dataset": True},
        pad_to_multiple_of=None,
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a NaN loss must be seen
        eval_strategy="steps" if validate else "no",
        eval_steps=training.evaluate_every,
        save_strategy="steps",
        save_steps=training.evaluate_every,
        save_total_limit=2,
        load_best_model_at_end=validate,
        metric_for_best_model="eval_loss" if validate else None,
        greater_is_better=False if validate else None,
        dataloader_pin_memory=device.kind == "cuda",
        disable_tqdm=True,
        report_to=[],
    )
    config._n_gpu = 1  # of several, the first: Trainer would split the batches over all of them
    return config


def _early_stopping(recipe: Recipe, last: Path | None) -> list[TrainerCallback]:
    patience = recipe.training.patience
    if patience is None:
        return []
    callback = EarlyStoppingCallback(early_stopping_patience=patience)
    if last is not None:
        state = TrainerState.load_from_json(str(last / "trainer_state.json"))
        kept = state.stateful_callbacks.get("EarlyStoppingCallback", {}).get("attributes", {})
        callback.early_stopping_patience_counter = kept.get("early_stopping_patience_counter", 0)
    return [callback]


@contextmanager
def _without_pad_token(prepared: Prepared) -> Iterator[Any]:
    """TRL wants a pad token; it pads by position, so the end token serves, for this while only.

    A saved pad token that is the end token makes other tools mask every end token out of the loss.
    """
    tokenizer = prepared.template.tokenizer
    before = tokenizer.pad_token
    tokenizer.pad_token = before or tokenizer.eos_token
    try:
        yield tokenizer
    finally:
        tokenizer.pad_token = before


@dataclass
class _Meter:
    """Tokens of the step under way, padding not counted, and of all steps with their time."""

    step_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0


class _Trainer(SFTTrainer):  # type: ignore[misc]  # trl is untyped
    """SFTTrainer with our layout and loss, the same for training and validation.

    TRL's computes the output layer for every token, padding too, and entropy and accuracy over the
    vocabulary: over half of a small model's step. And HF's validation averages the batches' means,
    so that a short reply weighs as much as a long one.
    """

    def __init__(self, token_budget: int, meter: "_Meter", **arguments: Any) -> None:
        super().__init__(data_collator=collate, **arguments)
        exact = prepare_packing(self.model)
        if not exact:
            log.warning("this architecture mixes conversations in a pack: each is computed alone")
        self._nats = SupervisedLoss(self.model, packs=exact)
        self._token_budget = token_budget if exact else 0
        self._meter = meter

    def training_step(self, model: Any, inputs: dict[str, Any], *_: Any) -> torch.Tensor:
        """Forward and backward of a whole step, pack by pack.

        The loss is the mean over the step's supervised tokens, so 4 x 4 conversations equal 16 x 1.
        Where memory runs out, the step is done again in smaller packs, and so are those after it.
        """
        model.train()
        inputs = self._prepare_inputs(inputs)
        self._meter.step_tokens = sum(inputs["lengths"])
        random = torch.random.get_rng_state(), self._gpu_random_state()
        while True:
            try:
                return self._whole_step(inputs)
            except RuntimeError as error:
                if not _out_of_memory(error) or self._token_budget <= min(inputs["lengths"]):
                    raise
            model.zero_grad()
            torch.random.set_rng_state(random[0])
            if random[1] is not None:
                torch.cuda.set_rng_state(random[1])
            self._token_budget = min(self._token_budget, sum(inputs["lengths"])) // 2
            log.warning("out of memory: going on in packs of %d tokens", self._token_budget)
            if self.args.device.type != "cpu":
                torch.accelerator.empty_cache()

    def _gpu_random_state(self) -> torch.Tensor | None:
        return torch.cuda.get_rng_state() if self.args.device.type == "cuda" else None

    def _whole_step(self, inputs: dict[str, Any]) -> torch.Tensor:
        supervised = (inputs["labels"] != IGNORED_LABEL).sum()
        total = torch.zeros((), device=self.args.device)
        for ids, labels, lengths in passes(inputs, self._token_budget):
            nats = self._nats(ids, labels, lengths)
            self.accelerator.backward(nats / supervised)
            total += nats.detach() / supervised
        return total

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nobody reads transformers' estimate, and counting parameters takes 3 ms a step."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation loss in nats a supervised token, over all of them alike."""
        self.model.eval()
        nats, tokens = 0.0, 0
        with torch.no_grad():
            rows = self.eval_dataset
            for start in range(0, len(rows), _VALIDATED_AT_ONCE):
                some = range(start, min(start + _VALIDATED_AT_ONCE, len(rows)))
                inputs = self._prepare_inputs(collate([rows[i] for i in some]))
                tokens += int((inputs["labels"] != IGNORED_LABEL).sum())
                nats += sum(float(self._nats(*pack)) for pack in passes(inputs, self._token_budget))
        metrics = {"eval_loss": nats / tokens}
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it; MPS, cuBLAS and the CPU's allocator have sentences."""
    said = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


class _Journal(TrainerCallback):  # type: ignore[misc]  # transformers' callbacks are untyped
    """Writes metrics.jsonl, tells the watcher, ends the run on a signal, seals checkpoints."""

    def __init__(
        self, folder: Path, watcher: Watcher, interruption: Interruption, meter: _Meter
    ) -> None:
        self._file = folder / METRICS
        self._watcher, self._interruption, self._meter = watcher, interruption, meter
        # A step's time goes from the end of the one before, but for validating and saving.
        self._since: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._keep_lines_until(state.global_step)
        self._watcher.begin(state.global_step, state.max_steps)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._since = self._since or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        now = time.perf_counter()
        assert self._since is not None  # the step has begun
        spent, self._since = now - self._since, now
        self._meter.seconds += spent
        self._meter.tokens += self._meter.step_tokens
        self._rate = self._meter.step_tokens / spent
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = True
        if self._interruption.signum is not None:
            control.should_training_stop = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        line: dict[str, Any] = {"step": state.global_step}
        if "eval_loss" in logs:
            line["validation_loss"] = logs["eval_loss"]
            self._watcher.validated(state.global_step, logs["eval_loss"])
        elif "loss" in logs:
            line |= {
                "loss": logs["loss"],
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": logs.get("grad_norm"),
                "tokens_per_s": round(self._rate, 1),
            }
            self._watcher.step(state.global_step, logs["loss"], self._rate)
        else:
            return  # the summary at the end
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self._since = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = None
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._watcher.end()

    def _keep_lines_until(self, step: int) -> None:
        """Steps after the checkpoint will be done, and written, again."""
        if self._file.exists():
            whole = [line for line in self._file.read_text("utf-8").split("\n")[:-1] if line]
            kept = [line for line in whole if json.loads(line)["step"] <= step]
            write_bytes(self._file, "".join(f"{line}\n" for line in kept).encode())
