"""The study's recipe on a base of GPT-Neo-125M's shape (random weights) and real Guanaco rows."""

import os
from pathlib import Path

import pytest

from chattune.recipe import load_recipe
from chattune.run import Run
from chattune.tuning import tune
from conftest import SHARED


@pytest.fixture(scope="module")
def gpt_neo_125m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import GPT2TokenizerFast, GPTNeoConfig, GPTNeoForCausalLM

    folder = tmp_path_factory.mktemp("gpt-neo-125m")
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=50257, hidden_size=768, num_layers=12, num_heads=12, window_size=256,
        attention_types=[[["global", "local"], 6]], bos_token_id=50256, eos_token_id=50256,
    )  # fmt: skip
    GPTNeoForCausalLM(config).save_pretrained(folder)
    files = SHARED / "tokenizer-gpt2"
    tokenizer = GPT2TokenizerFast(str(files / "vocab.json"), str(files / "merges.txt"))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real conversations beside the checkout")
def test_the_studys_recipe_trains_two_steps_and_resumes(
    gpt_neo_125m: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe is the shipped one with 4 conversations a step, not 16, to save a minute."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)  # unlike a tiny model, this one gains by threads
    monkeypatch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)
    changes = {
        "base": str(gpt_neo_125m),
        "data.source": str(SHARED / "guanaco.jsonl"),
        "data.rows": 120,
        "data.validation": 0,
        "training.accumulation": 1,
    }
    two = tune(
        load_recipe("gpt-neo-125m-guanaco", {**changes, "training.steps": 2}), tmp_path / "run"
    )
    assert two.facts["data"]["format"] == "guanaco"
    assert two.facts["result"]["steps"] == 2
    three = tune(
        load_recipe("gpt-neo-125m-guanaco", {**changes, "training.steps": 3}),
        two.folder,
        resume=True,
    )
    assert three.facts["result"]["steps"] == 3
    torch.set_num_threads(1)
    assert Run.open(three.folder).facts["reload_difference"] <= 1e-5
