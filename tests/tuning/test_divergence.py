"""A training whose numbers are no longer finite is stopped, and its last good checkpoint kept."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chattune.errors import TrainingDiverged
from chattune.folders import write_json
from chattune.recipe import Recipe, load_recipe
from chattune.tuning import loss as losses
from chattune.tuning import tune
from chattune.tuning.progress import Unwatched
from conftest import TALK, Outcome, write_talk


@pytest.fixture(autouse=True)
def _short(quick_tuning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A file of 32 conversations, enough to hold some out."""
    pairs = [(f"{q} ({i})", a) for i in range(8) for q, a in TALK]
    return write_talk(tmp_path / "many.jsonl", pairs)


def recipe(base: Path, data: Path, **settings: Any) -> Recipe:
    return load_recipe(
        "starter",
        {
            "base": str(base), "data.source": str(data), "data.max_length": 64,
            "data.validation": 0.0, "training.batch_size": 2, "training.accumulation": 1,
            "training.steps": 8, "training.evaluate_every": 2, "training.warmup_ratio": 0.0,
            "training.learning_rate": 1e-3, "training.patience": None,
        }
        | {name.replace("__", "."): value for name, value in settings.items()},
    )  # fmt: skip


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("checkpoint-*")}


def finite_lines(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, after making sure that they are JSON without NaN."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    text = (run / "metrics.jsonl").read_text("utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, *, gradient_only: bool = False) -> None:
    """Make the loss, or only its gradient, of a training step NaN; each step has one pack."""
    compute = losses.SupervisedLoss.__call__
    calls = 0

    def spoiled(self: Any, *pack: Any) -> torch.Tensor:
        nonlocal calls
        nats = compute(self, *pack)
        if not nats.requires_grad:  # a validation
            return nats
        calls += 1
        if calls != step:
            return nats
        if gradient_only:
            nats.register_hook(lambda gradient: gradient * math.inf)
            return nats
        return nats * math.nan

    monkeypatch.setattr(losses.SupervisedLoss, "__call__", spoiled)


@pytest.mark.parametrize("validation", [0.0, 0.25])
def test_a_ruinous_learning_rate_is_named_and_saves_nothing(
    tiny_base: Path, many: Path, tmp_path: Path, cli: Callable[..., Outcome], validation: float
) -> None:
    arguments = [
        "tune", "starter", "--base", tiny_base, "--data", many, "--output", tmp_path / "run",
        "--set", "data.max_length=64", "--set", f"data.validation={validation}",
        "--set", "training.learning_rate=1e30", "--set", "training.steps=6",
        "--set", "training.batch_size=2", "--set", "training.evaluate_every=1",
    ]  # fmt: skip
    for command in (arguments, [*arguments, "--resume"]):
        outcome = cli(*command)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err
        assert "step " in outcome.err
        assert "lower training.learning_rate (1e+30)" in outcome.err
        assert not (tmp_path / "run" / "manifest.json").exists()
        finite_lines(tmp_path / "run")


def test_an_update_that_ruins_the_model_is_not_saved(
    tiny_base: Path, many: Path, tmp_path: Path
) -> None:
    """The last step's own loss is finite, because it is measured before the update."""
    ruinous = recipe(tiny_base, many, training__steps=1, training__learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"^step 1: the loss after the step is nan"):
        tune(ruinous, tmp_path / "run")
    assert checkpoints(tmp_path / "run") == set()


@pytest.mark.parametrize(
    ("gradient_only", "name"), [(False, "loss is nan"), (True, "gradient norm is (nan|inf)")]
)
def test_the_step_is_named_and_the_checkpoint_before_it_kept(
    gradient_only: bool,
    name: str,
    tiny_base: Path,
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = recipe(tiny_base, many)
    whole = tune(plain, tmp_path / "whole")
    with monkeypatch.context() as patch:
        spoil(patch, 6, gradient_only=gradient_only)
        with pytest.raises(TrainingDiverged, match=f"^step 6: the {name}"):
            tune(plain, tmp_path / "run")
    assert checkpoints(tmp_path / "run") == {"checkpoint-2", "checkpoint-4"}
    assert [line["step"] for line in finite_lines(tmp_path / "run")] == [1, 2, 3, 4, 5]
    resumed = tune(plain, tmp_path / "run", resume=True)  # without the fault
    adapters = [(r.folder / "adapter_model.safetensors").read_bytes() for r in (whole, resumed)]
    assert adapters[0] == adapters[1]


def test_a_validation_that_is_not_finite_saves_no_checkpoint(
    tiny_base: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = losses.SupervisedLoss.__call__
    validations = 0

    def spoiled(self: Any, *pack: Any) -> torch.Tensor:
        nonlocal validations
        nats = compute(self, *pack)
        validations += not nats.requires_grad
        return nats * math.nan if validations == 2 else nats

    monkeypatch.setattr(losses.SupervisedLoss, "__call__", spoiled)
    with pytest.raises(TrainingDiverged, match=r"^step 4: the validation loss is nan"):
        tune(recipe(tiny_base, many, data__validation=0.25), tmp_path / "run")
    assert checkpoints(tmp_path / "run") == {"checkpoint-2"}
    assert "validation_loss" not in finite_lines(tmp_path / "run")[-1]


def test_a_base_that_computes_nan_is_not_blamed_on_the_learning_rate(
    tiny_base: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 1)
    with pytest.raises(TrainingDiverged, match="check the base's weights") as error:
        tune(recipe(tiny_base, many), tmp_path / "run")
    assert "learning_rate" not in str(error.value)
    assert str(error.value).startswith("step 1: ")


def test_the_watcher_is_told_that_the_training_is_over(
    tiny_base: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(Unwatched):
        ends = 0

        def end(self) -> None:
            self.ends += 1

    watcher = Counting()
    spoil(monkeypatch, 2)
    with pytest.raises(TrainingDiverged):
        tune(recipe(tiny_base, many), tmp_path / "run", watcher=watcher)
    assert watcher.ends == 1


def test_json_is_never_written_with_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "run.json", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []
