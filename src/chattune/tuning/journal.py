"""The trainer's callback: metrics.jsonl, progress, time and interruption."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from chattune.device import synchronize
from chattune.folders import naming, write_bytes
from chattune.run import METRICS
from chattune.tuning.interrupt import Interruption
from chattune.tuning.progress import Watcher

log = logging.getLogger(__name__)


@dataclass
class Meter:
    """Counts of trained tokens, without padding, and the seconds that their steps took.

    The trainer sets `step_tokens` at the start of a step; the journal adds up the rest.
    """

    step_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Journal(TrainerCallback):  # type: ignore[misc]  # transformers' callbacks are untyped
    """A callback that records the training and lets a signal stop it.

    It writes metrics.jsonl and tells the watcher about each step.
    """

    def __init__(
        self, folder: Path, watcher: Watcher, interruption: Interruption, meter: Meter
    ) -> None:
        self._file = folder / METRICS
        self._watcher, self._interruption, self._meter = watcher, interruption, meter
        # A step's time is counted from the end of the step before it, so that loading its data is
        # included; after a validation or a save it is counted from its own beginning.
        self._started: float | None = None
        self._tokens_per_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show the progress."""
        self._watcher.begin(state.global_step, state.max_steps)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock if it is not running."""
        self._started = self._started or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the step's time; validate and save after the last one; stop after a signal."""
        synchronize()
        now = time.perf_counter()
        assert self._started is not None  # on_step_begin came first
        seconds, self._started = now - self._started, now
        self._meter.seconds += seconds
        self._meter.tokens += self._meter.step_tokens
        self._tokens_per_s = self._meter.step_tokens / seconds
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = True
        if self._interruption.signum is not None:
            control.should_training_stop = control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Append a step's or a validation's line to metrics.jsonl, and tell the watcher."""
        line: dict[str, Any] = {"step": state.global_step}
        if "eval_loss" in logs:
            line["validation_loss"] = logs["eval_loss"]
            self._watcher.validated(state.global_step, logs["eval_loss"])
        elif "loss" in logs:
            line |= {
                "loss": logs["loss"],
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": logs.get("grad_norm"),
                "tokens_per_s": round(self._tokens_per_s, 1),
            }
            self._watcher.step(state.global_step, logs["loss"], self._tokens_per_s)
        else:
            return  # transformers' summary at the end of the training
        with naming(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Stop the clock, because a validation belongs to no step."""
        self._started = None

    def on_save(self, *_: Any, **__: Any) -> None:
        """Stop the clock, because a checkpoint belongs to no step."""
        self._started = None


def keep_lines_until(metrics: Path, step: int) -> None:
    """Remove the lines of steps after `step`, which are done again, and those that are damaged."""
    if not metrics.exists():
        return
    kept = []
    for number, line in enumerate(metrics.read_text("utf-8", "replace").splitlines(), start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
        except (ValueError, KeyError, TypeError):
            log.warning("%s:%d: is damaged, or was cut short; the line is removed", metrics, number)
    write_bytes(metrics, "".join(kept).encode())
