"""The training loop, on top of TRL's SFTTrainer; no other file imports trl.

SFTTrainer is kept because the study that this project reproduces was made with it: the order in
which data is loaded, the optimiser, the scheduler, checkpoints and resuming are its own. The layout
of a batch, the loss and validation are replaced, with the reasons in docs/decisions/0002.
"""

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer

from chattune.errors import TrainingDiverged
from chattune.models.packing import causal_model, speed_up_training
from chattune.recipe import Recipe
from chattune.run import ADAPTER_WEIGHTS, CHECKPOINTS, METRICS
from chattune.template import IGNORED_LABEL
from chattune.tuning.batches import collate, passes
from chattune.tuning.interrupt import Interruption
from chattune.tuning.journal import Journal, Meter, keep_lines_until
from chattune.tuning.loss import SupervisedLoss
from chattune.tuning.neftune import noisy_embeddings
from chattune.tuning.planning import Plan
from chattune.tuning.progress import Watcher
from chattune.tuning.resuming import (
    best_of,
    discard_damaged,
    is_trained,
    latest_checkpoint,
    mark_complete,
    step_of,
    validations_in_vain,
)

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

_VALIDATION_BATCH = 64  # conversations that are cut into packs together
# transformers' "constant" ignores the warm-up silently; every schedule of a recipe has one.
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class Result:
    """The outcome of a training: losses in nats per supervised token, and the rate.

    `stopped_early` says whether patience ended the training after `steps`, before the last step of
    its plan. `best_step` is the step whose adapter was kept. `seconds` and `tokens_per_s` cover the
    steps since the training was last started or resumed, without validation and saving.
    """

    steps: int
    stopped_early: bool
    best_step: int
    train_loss: float
    validation_loss: float | None
    seconds: float
    tokens_per_s: float


def train(
    model: "PeftModel", plan: Plan, folder: Path, watcher: Watcher
) -> tuple[Result, int | None]:
    """Train the adapter in place, from the last checkpoint in `folder` if there is one.

    At the end the model has the adapter of the lowest validation loss, or the last one if nothing
    is held out. Returns the result and the signal that stopped the training early, or None; after
    a signal the state of the last step is in a checkpoint. Raises TrainingDiverged, with the
    checkpoints before that step intact, if a loss or a gradient is not finite.
    """
    discard_damaged(folder)
    prepared, checkpoint = plan.prepared, latest_checkpoint(folder)
    keep_lines_until(folder / METRICS, step_of(checkpoint) if checkpoint else 0)
    with Interruption() as interruption, _pad_token(prepared.template.tokenizer) as tokenizer:
        meter = Meter()
        trainer = _Trainer(
            token_budget=plan.estimate.token_budget,
            longest=prepared.report.length_quantiles["100%"],
            neftune=plan.recipe.training.neftune,
            meter=meter,
            model=model,
            args=_arguments(plan, folder),
            train_dataset=prepared.train,
            eval_dataset=prepared.validation if len(prepared.validation) else None,
            processing_class=tokenizer,
            callbacks=[
                Journal(folder, watcher, interruption, meter),
                *_early_stopping(plan.recipe, checkpoint),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        if checkpoint is not None and is_trained(checkpoint, plan):
            trainer.state = _take_best(model, checkpoint)  # only the end of the run is missing
        else:
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            finally:
                watcher.end()
    state = trainer.state
    best = state.best_model_checkpoint
    result = Result(
        steps=state.global_step,
        stopped_early=interruption.signum is None and state.global_step < plan.steps,
        best_step=step_of(Path(best)) if best else state.global_step,
        train_loss=[line["loss"] for line in state.log_history if "loss" in line][-1],
        validation_loss=state.best_metric,
        seconds=round(meter.seconds, 2),
        tokens_per_s=round(meter.tokens / meter.seconds, 1) if meter.seconds else 0.0,
    )
    return result, interruption.signum


def _take_best(model: "PeftModel", checkpoint: Path) -> TrainerState:
    """Load the best adapter of a finished training into the model; return the training's state."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(best_of(checkpoint) / ADAPTER_WEIGHTS))
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _arguments(plan: Plan, folder: Path) -> SFTConfig:
    """Return TRL's settings.

    All that decide the result are given, because TRL's defaults are not what a recipe says: bf16
    autocast, gradient checkpointing, and sequences cut at 1,024 tokens.
    """
    training, seed, kind = plan.recipe.training, plan.recipe.seed, plan.device.kind
    validates = bool(len(plan.prepared.validation))
    config = SFTConfig(
        output_dir=str(folder / CHECKPOINTS),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.recipe.training.conversations_per_step,
        gradient_accumulation_steps=1,  # a step is cut into packs of tokens instead
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULES[training.schedule],
        warmup_steps=plan.warmup_steps,
        optim="adamw_torch_fused" if kind == "cuda" else "adamw_torch",
        max_grad_norm=training.max_grad_norm,
        weight_decay=training.weight_decay,
        bf16=False,  # autocast; the frozen base itself is in bf16, so that no step converts it
        use_cpu=kind == "cpu",
        gradient_checkpointing=plan.estimate.checkpointing,
        max_length=None,  # prepare() has cut the conversations
        dataset_kwargs={"skip_prepare_dataset": True},
        pad_to_multiple_of=None,
        seed=seed,
        data_seed=seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # _Trainer stops at a loss that is not finite
        eval_strategy="steps" if validates else "no",
        eval_steps=training.evaluate_every,
        save_strategy="steps",
        save_steps=training.evaluate_every,
        save_total_limit=2,
        load_best_model_at_end=validates,
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        dataloader_pin_memory=kind == "cuda",
        disable_tqdm=True,
        report_to=[],
    )
    config._n_gpu = 1  # with several GPUs, Trainer would split each batch over all of them
    return config


def _early_stopping(recipe: Recipe, checkpoint: Path | None) -> list[TrainerCallback]:
    """Return the callback for the recipe's patience, which a resumed run counts on from."""
    patience = recipe.training.patience
    if patience is None:
        return []
    callback = EarlyStoppingCallback(early_stopping_patience=patience)
    if checkpoint is not None:
        callback.early_stopping_patience_counter = validations_in_vain(checkpoint)
    return [callback]


@contextmanager
def _pad_token(tokenizer: Any) -> Iterator[Any]:
    """Give the tokenizer the end token as pad token while TRL, which insists on one, trains.

    It must not be saved: other tools would then mask every end token out of the loss.
    """
    before = tokenizer.pad_token
    tokenizer.pad_token = before or tokenizer.eos_token
    try:
        yield tokenizer
    finally:
        tokenizer.pad_token = before


class _Trainer(SFTTrainer):  # type: ignore[misc]  # trl is untyped
    """SFTTrainer with chattune's layout and loss, the same in training and validation.

    TRL computes the output layer for every token, padding included, and entropy and accuracy over
    the vocabulary: over half of a small model's step. And transformers' validation averages the
    means of batches, so that a short reply counts as much as a long one.
    """

    def __init__(
        self, token_budget: int, longest: int, neftune: float, meter: Meter, **arguments: Any
    ) -> None:
        super().__init__(data_collator=collate, **arguments)
        packing = speed_up_training(self.model, longest=longest)
        if packing.problem:
            log.warning(
                "each conversation is computed alone: packs do not suit this model, because %s",
                packing.problem,
            )
        self._nats = SupervisedLoss(self.model, packing)
        self._embeddings, self._neftune = causal_model(self.model).get_input_embeddings(), neftune
        self._token_budget = 0 if packing.problem else token_budget
        self._meter = meter
        self._step_inputs: dict[str, Any] = {}
        self._step_loss = torch.zeros(())
        self._validated_step = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *_: Any) -> torch.Tensor:
        """Run forward and backward of a step, pack by pack; return the step's loss.

        The loss is the mean over the step's supervised tokens, so 4 x 4 conversations equal 16 x 1.
        If memory runs out, the step is done again in packs of half as many tokens, and later steps
        keep to packs of that size.
        """
        model.train()
        inputs = self._step_inputs = self._prepare_inputs(inputs)
        lengths = inputs["lengths"]
        self._meter.step_tokens = sum(lengths)
        cpu_state, gpu_state = torch.random.get_rng_state(), self._gpu_random_state()
        while True:
            try:
                self._step_loss = self._forward_backward(inputs)
                return self._step_loss
            except RuntimeError as error:
                if not _is_out_of_memory(error) or self._token_budget <= min(lengths):
                    raise
            model.zero_grad()
            torch.random.set_rng_state(cpu_state)
            if gpu_state is not None:
                torch.cuda.set_rng_state(gpu_state)
            self._token_budget = min(self._token_budget, sum(lengths)) // 2
            log.warning("out of memory: going on in packs of %d tokens", self._token_budget)
            if self.args.device.type != "cpu":
                torch.accelerator.empty_cache()

    def _gpu_random_state(self) -> torch.Tensor | None:
        return torch.cuda.get_rng_state() if self.args.device.type == "cuda" else None

    def _forward_backward(self, inputs: dict[str, Any]) -> torch.Tensor:
        supervised = (inputs["labels"] != IGNORED_LABEL).sum()
        total = torch.zeros((), device=self.args.device)
        for ids, labels, lengths in passes(inputs, self._token_budget):
            with noisy_embeddings(self._embeddings, self._neftune, lengths):
                nats = self._nats(ids, labels, lengths)
            self.accelerator.backward(nats / supervised)
            total += nats.detach() / supervised
        return total

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the norm of a step's gradients, unless it or the step's loss is not finite.

        transformers calls this after the backward pass and before the optimiser. Both numbers are
        read at once, so that a GPU is waited for only once; the journal waits for it at the end of
        each step in any case.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        loss, norm_number = torch.stack([self._step_loss, norm]).tolist()
        self._require_finite(self.state.global_step + 1, "loss", loss)
        self._require_finite(self.state.global_step + 1, "gradient norm", norm_number)
        return norm

    def _save_checkpoint(self, *arguments: Any) -> None:
        """Save a checkpoint whole or not at all, and only if the loss is still finite.

        A step's own loss is measured before its update. Where no validation follows, the loss after
        it is measured on conversations of the step.
        """
        step = self.state.global_step
        if self._validated_step != step:
            self.model.eval()
            pack = next(passes(self._step_inputs, self._token_budget))
            with torch.no_grad():
                self._require_finite(step, "loss after the step", float(self._nats(*pack)))
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{step}"
        try:
            super()._save_checkpoint(*arguments)
            mark_complete(checkpoint)
        except Exception:
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise

    def _require_finite(self, step: int, name: str, number: float) -> None:
        """Raise TrainingDiverged unless `number`, of the given name and step, is finite."""
        if math.isfinite(number):
            return
        remedy = "check the base's weights and precision, and the conversations"
        if self.state.global_step:  # an update has been made
            rate = self.args.learning_rate
            remedy = f"lower training.learning_rate ({rate:g}) and start a new run, or {remedy}"
        raise TrainingDiverged(
            f"step {step}: the {name} is {number}, not a finite number; {remedy}"
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: nothing reads transformers' estimate, and making it takes 3 ms a step."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return and log the validation loss, the mean in nats over all supervised tokens."""
        self.model.eval()
        nats, supervised = 0.0, 0
        rows = self.eval_dataset
        with torch.no_grad():
            for start in range(0, len(rows), _VALIDATION_BATCH):
                batch = range(start, min(start + _VALIDATION_BATCH, len(rows)))
                inputs = self._prepare_inputs(collate([rows[i] for i in batch]))
                supervised += int((inputs["labels"] != IGNORED_LABEL).sum())
                nats += sum(float(self._nats(*pack)) for pack in passes(inputs, self._token_budget))
        metrics = {"eval_loss": nats / supervised}
        self._require_finite(self.state.global_step, "validation loss", metrics["eval_loss"])
        self._validated_step = self.state.global_step
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out. CUDA has a class for it; others have only these texts."""
    texts = (
        "out of memory",  # MPS
        "can't allocate memory",  # the CPU's allocator
        "CUBLAS_STATUS_ALLOC_FAILED",
    )
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)
