"""The training loop, on top of TRL's SFTTrainer; no other file imports trl.

SFTTrainer is kept because the study that this project reproduces was made with it: the order in
which data is loaded, the optimiser, the scheduler, checkpoints and resuming are its own. The layout
of a batch, the loss and validation are replaced, with the reasons in docs/decisions/0002.
"""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer

from chattune.models.packing import speed_up_training
from chattune.recipe import Recipe
from chattune.run import ADAPTER_WEIGHTS, CHECKPOINTS, METRICS
from chattune.template import IGNORED_LABEL
from chattune.tuning.batches import collate, passes
from chattune.tuning.interrupt import Interruption
from chattune.tuning.journal import Journal, Meter
from chattune.tuning.loss import SupervisedLoss
from chattune.tuning.planning import Plan
from chattune.tuning.progress import Watcher
from chattune.tuning.resuming import latest_checkpoint, step_of

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

_VALIDATION_BATCH = 64  # conversations that are cut into packs together
# transformers' "constant" ignores the warm-up silently; every schedule of a recipe has one.
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class Result:
    """The outcome of a training: losses in nats per supervised token, and the rate.

    `best_step` is the step whose adapter was kept. `seconds` and `tokens_per_s` cover the steps
    since the training was last started or resumed, without validation and saving.
    """

    steps: int
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
    a signal the state of the last step is in a checkpoint.
    """
    prepared, checkpoint = plan.prepared, latest_checkpoint(folder)
    with Interruption() as interruption, _pad_token(prepared.template.tokenizer) as tokenizer:
        meter = Meter()
        trainer = _Trainer(
            token_budget=plan.estimate.token_budget,
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
        if checkpoint is not None and step_of(checkpoint) >= plan.steps:
            trainer.state = _take_best(model, checkpoint)  # only the end of the run is missing
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    best = state.best_model_checkpoint
    result = Result(
        steps=state.global_step,
        best_step=step_of(Path(best)) if best else state.global_step,
        train_loss=_last_loss(folder),
        validation_loss=state.best_metric,
        seconds=round(meter.seconds, 2),
        tokens_per_s=round(meter.tokens / meter.seconds, 1) if meter.seconds else 0.0,
    )
    return result, interruption.signum


def _take_best(model: "PeftModel", checkpoint: Path) -> TrainerState:
    """Load the best adapter of a finished training into the model; return the training's state."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = _load_state(checkpoint)
    best = checkpoint.parent / Path(state.best_model_checkpoint or checkpoint).name
    set_peft_model_state_dict(model, load_file(best / ADAPTER_WEIGHTS))
    return state


def _load_state(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _last_loss(folder: Path) -> float:
    """Return the loss of the last step in metrics.jsonl."""
    lines = map(json.loads, (folder / METRICS).read_text("utf-8").splitlines())
    return [float(line["loss"]) for line in lines if "loss" in line][-1]


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
        warmup_steps=min(math.ceil(training.warmup_ratio * plan.steps), plan.steps - 1),
        optim="adamw_torch_fused" if kind == "cuda" else "adamw_torch",
        max_grad_norm=1.0,
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
        logging_nan_inf_filter=False,  # a NaN loss must be visible
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
        saved = _load_state(checkpoint).stateful_callbacks.get("EarlyStoppingCallback", {})
        counter = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
        callback.early_stopping_patience_counter = counter
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

    def __init__(self, token_budget: int, meter: Meter, **arguments: Any) -> None:
        super().__init__(data_collator=collate, **arguments)
        packing = speed_up_training(self.model)
        if not packing.exact:
            log.warning("this model mixes the conversations of a pack, so each is computed alone")
        self._nats = SupervisedLoss(self.model, packing)
        self._token_budget = token_budget if packing.exact else 0
        self._meter = meter

    def training_step(self, model: Any, inputs: dict[str, Any], *_: Any) -> torch.Tensor:
        """Run forward and backward of a step, pack by pack; return the step's loss.

        The loss is the mean over the step's supervised tokens, so 4 x 4 conversations equal 16 x 1.
        If memory runs out, the step is done again in packs of half as many tokens, and later steps
        keep to packs of that size.
        """
        model.train()
        inputs = self._prepare_inputs(inputs)
        lengths = inputs["lengths"]
        self._meter.step_tokens = sum(lengths)
        cpu_state, gpu_state = torch.random.get_rng_state(), self._gpu_random_state()
        while True:
            try:
                return self._forward_backward(inputs)
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
            nats = self._nats(ids, labels, lengths)
            self.accelerator.backward(nats / supervised)
            total += nats.detach() / supervised
        return total

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
