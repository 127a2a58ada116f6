"""The proof of a saved run, for a base that was trained in bf16."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chattune import tuning
from chattune.base import find_base
from chattune.device import find_device
from chattune.models import load_base
from chattune.models.lora import add_lora
from chattune.models.verify import TOLERANCE, logits_of, verify_run
from chattune.recipe import LoraRecipe
from chattune.tuning import tune
from tuned import in_fp32, recipe


@pytest.fixture(autouse=True)
def _short_in_bf16(quick_tuning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)
    device = replace(find_device(), bf16=True)
    monkeypatch.setattr("chattune.tuning.planning.find_device", lambda: device)


def test_logits_are_those_of_the_weights_in_fp32(tiny_base: Path) -> None:
    """The weights themselves stay in bf16."""
    base = load_base(find_base(str(tiny_base)), in_fp32(), torch.bfloat16)
    model = add_lora(base, LoraRecipe(), 0)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert torch.bfloat16 in dtypes.values()
    ours = logits_of(model, [5, 6, 7, 8])
    assert {name: p.dtype for name, p in model.named_parameters()} == dtypes
    assert ours.equal(logits_of(model.float(), [5, 6, 7, 8]))


def test_a_base_in_bf16_stays_so_and_is_proved_by_a_process_with_more_threads(
    tiny_base: Path, talk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: set[torch.dtype] = set()

    def logits(model: Any, ids: list[int]) -> torch.Tensor:
        dtypes.update(p.dtype for p in model.get_base_model().transformer.wte.parameters())
        return logits_of(model, ids)

    monkeypatch.setattr(tuning, "verify_run", verify_run)
    monkeypatch.setattr(tuning, "logits_of", logits)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    run = tune(recipe(tiny_base, talk_file), tmp_path / "run")
    assert dtypes == {torch.bfloat16}
    assert run.facts["reload_difference"] <= TOLERANCE
    assert run.facts["device"]["bf16"]
