"""NEFTune: the scale of the noise in a pack, and training with it through tune()."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from chattune.data import prepare
from chattune.device import find_device
from chattune.models import load
from chattune.models.packing import speed_up_training
from chattune.tuning import tune
from chattune.tuning.batches import collate, passes
from chattune.tuning.loss import SupervisedLoss
from chattune.tuning.neftune import noisy_embeddings
from llamas import random_model
from tuned import adapter, in_fp32, metrics, recipe, write_talks

WIDTH = 64
LENGTHS = [100, 9, 37]
ALPHA = 5.0


@pytest.fixture(autouse=True)
def _short_and_exact(quick_tuning: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattune.tuning.planning._SAMPLE_TOKENS", 4)
    monkeypatch.setattr("chattune.tuning.planning.find_device", in_fp32)


def gpt_neo(_: Path, request: pytest.FixtureRequest) -> Any:
    return AutoModelForCausalLM.from_pretrained(request.getfixturevalue("neo_base"))


def llama(folder: Path, _: pytest.FixtureRequest) -> Any:
    return AutoModelForCausalLM.from_pretrained(random_model("llama", folder))


def gpt2(*_: Any) -> Any:
    """A model without a wing that takes packs."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=211, n_embd=WIDTH, n_layer=2, n_head=2))


def bloom(*_: Any) -> Any:
    """A model without a wing that takes no packs."""
    return BloomForCausalLM(BloomConfig(vocab_size=211, hidden_size=WIDTH, n_layer=2, n_head=2))


def embedded_during(embeddings: torch.nn.Module, forward_pass: Callable[[], Any]) -> torch.Tensor:
    """Return what the embedding gives to the model in a forward pass."""
    outputs: list[torch.Tensor] = []
    handle = embeddings.register_forward_hook(lambda *args: outputs.append(args[2]))
    forward_pass()
    handle.remove()
    (embedded,) = outputs
    return embedded.detach()


@pytest.mark.parametrize("make", [gpt_neo, llama, gpt2, bloom])
def test_the_noise_of_each_conversation_has_the_scale_of_its_length(
    make: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    torch.manual_seed(0)
    model = make(tmp_path, request)
    embeddings = model.get_input_embeddings()
    packing = speed_up_training(model, longest=100)
    assert bool(packing.problem) == (make is bloom)
    nats = SupervisedLoss(model, packing)
    ids = [torch.randint(211, (length,)) for length in LENGTHS]
    batch = collate([{"input_ids": i, "labels": i} for i in ids])
    for pack in passes(batch, 0 if packing.problem else 1000):
        pack_ids, _, lengths = pack
        with noisy_embeddings(embeddings, ALPHA, lengths):
            noisy = embedded_during(embeddings, functools.partial(nats, *pack))
        noise = noisy - embeddings(pack_ids).detach()
        assert noise.shape == (1, sum(lengths), WIDTH)
        for length, part in zip(lengths, noise[0].split(lengths), strict=True):
            bound = ALPHA / math.sqrt(length * WIDTH)
            standard_error = bound / math.sqrt(part.numel())
            assert 0.98 * bound < part.abs().max() <= 1.0001 * bound
            assert abs(part.mean()) < 5 * standard_error
            # The standard deviation of a uniform distribution in -1 to 1 is 1 / sqrt(3).
            assert abs(part.std() - bound / math.sqrt(3)) < 5 * standard_error
        with noisy_embeddings(embeddings, 0.0, lengths):
            assert embeddings(pack_ids).equal(embeddings(pack_ids))


def test_the_noise_follows_the_seed_and_is_another_in_each_pass(tiny_base: Path) -> None:
    embeddings = torch.nn.Embedding(10, 8)
    ids = torch.arange(10)[None]

    def draw() -> torch.Tensor:
        with noisy_embeddings(embeddings, ALPHA, [4, 6]):
            return embeddings(ids).detach()

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert draw().equal(first)
    assert not first.equal(second)
    assert not embeddings._forward_hooks


def test_noise_of_bf16_embeddings_is_in_bf16() -> None:
    embeddings = torch.nn.Embedding(10, 8, dtype=torch.bfloat16)
    with noisy_embeddings(embeddings, ALPHA, [10]):
        assert embeddings(torch.arange(10)[None]).dtype == torch.bfloat16


def test_it_changes_the_training_and_not_the_validation(tiny_base: Path, tmp_path: Path) -> None:
    data = write_talks(tmp_path / "talk.jsonl")
    common = {"data__validation": 0.25, "lora__dropout": 0.0}
    runs = [
        tune(recipe(tiny_base, data, training__neftune=alpha, **common), tmp_path / str(i))
        for i, alpha in enumerate([0, ALPHA, ALPHA])
    ]
    losses = [[m["loss"] for m in metrics(run.folder) if "loss" in m] for run in runs]
    assert losses[0] != losses[1]
    assert losses[1] == losses[2]
    weights = [adapter(run) for run in runs]
    assert all(weights[1][name].equal(weights[2][name]) for name in weights[1])
    assert not any(weights[0][name].equal(weights[1][name]) for name in weights[1])
    # The saved model, without any noise, has the validation loss that chose its checkpoint.
    model = load(runs[1].folder, find_device()).model
    nats = tokens = 0.0
    with torch.no_grad():
        for row in prepare(runs[1].recipe).validation:
            labels = torch.tensor([row["labels"]])
            count = int((labels[:, 1:] != -100).sum())
            loss = model(torch.tensor([row["input_ids"]]), labels=labels).loss
            nats, tokens = nats + float(loss) * count, tokens + count
    assert runs[1].facts["result"]["validation_loss"] == pytest.approx(nats / tokens, rel=1e-4)


def test_noise_goes_together_with_recomputed_activations(
    tiny_base: Path, talk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = recipe(tiny_base, talk_file, training__neftune=ALPHA)
    a = adapter(tune(noisy, tmp_path / "plain"))
    small = replace(in_fp32(), memory=1 << 20)
    monkeypatch.setattr("chattune.tuning.planning.find_device", lambda: small)
    b = adapter(tune(noisy, tmp_path / "recomputed"))
    assert all(a[k].allclose(b[k], atol=1e-6) for k in a)
