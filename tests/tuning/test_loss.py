"""The loss is cross entropy over the supervised tokens, exactly, however a step is cut."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from chattune.models.packing import Packing, speed_up_training
from chattune.tuning.batches import collate, packs
from chattune.tuning.loss import _CHUNK_BYTES, SupervisedLoss, summed_cross_entropy

LENGTHS = [12, 1, 9]


def rows() -> list[dict[str, list[int]]]:
    """Return three conversations with some supervised tokens."""
    ids = torch.randint(0, 99, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    return [
        {"input_ids": part.tolist(), "labels": ([-100] * 3 + part.tolist()[3:])[: len(part)]}
        for part in ids.split(LENGTHS)
    ]


def soft_capped() -> Gemma2ForCausalLM:
    """Return a model that changes the logits after its output layer."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.1,
        )
    )  # fmt: skip


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=16, n_layer=2, n_head=2))


@pytest.mark.parametrize("architecture", ["gpt_neo", "gpt2", "gemma2"])
def test_equals_the_models_own_loss_and_gradients(architecture: str, tiny_base: Path) -> None:
    torch.manual_seed(0)
    makers = {"gpt2": gpt2, "gemma2": soft_capped}
    model = (
        makers[architecture]()
        if architecture in makers
        else AutoModelForCausalLM.from_pretrained(tiny_base)
    ).eval()
    # The loss expects an output layer that is frozen, and so not tied to the embeddings.
    model.get_output_embeddings().weight = nn.Parameter(
        model.get_output_embeddings().weight.detach().clone(), requires_grad=False
    )
    nats, count = 0.0, 0
    for row in rows():
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor([row["labels"]])
        if supervised := int((labels[:, 1:] != -100).sum()):
            loss = model(ids, labels=labels).loss * supervised
            loss.backward()
            nats, count = nats + loss.item(), count + supervised
    theirs = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    packing = speed_up_training(model, longest=12)
    assert packing.problem is None
    ours = SupervisedLoss(model, packing)(**collate(rows()))
    ours.backward()
    assert count == 15
    assert ours.item() == pytest.approx(nats, rel=1e-5)
    for name, parameter in model.named_parameters():
        if name in theirs:
            torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [1, 10**9])
def test_chunks_change_nothing(
    chunk_bytes: int, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    ids = torch.randint(0, 99, (1, 100), generator=torch.Generator().manual_seed(2))
    loss = SupervisedLoss(model, Packing(takes_lengths=False, problem="not tried"))
    expected = loss(ids, ids, [100])
    monkeypatch.setitem(_CHUNK_BYTES, "cpu", chunk_bytes)
    assert loss(ids, ids, [100]).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_trained_output_layer_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_CHUNK_BYTES, "cpu", 1)  # several chunks
    torch.manual_seed(0)
    hidden = torch.randn(70, 8, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=True)
    targets = torch.randint(0, 11, (70,))
    expected = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (expected * 3).backward()
    theirs = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    ours = summed_cross_entropy(hidden, weight, None, targets)
    (ours * 3).backward()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close((hidden.grad, weight.grad), theirs)


def test_a_conversations_first_token_is_not_a_target() -> None:
    batch = collate([{"input_ids": [5, 6], "labels": [5, 6]}] * 2)
    assert batch["labels"].tolist() == [[-100, 6, -100, 6]]
    assert batch["lengths"] == [2, 2]


def test_packs_hold_every_conversation_once_within_the_budget() -> None:
    lengths = [5, 90, 33, 30, 7, 6, 100, 31]
    cut = packs(lengths, budget=110)
    assert sorted(i for pack in cut for i in pack) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= 110 for pack in cut)
    assert len(cut) == 3


@pytest.mark.parametrize("budget", [0, 100])
def test_a_conversation_longer_than_the_budget_stands_alone(budget: int) -> None:
    cut = packs([300, 20, 20], budget)
    assert [0] in cut
    assert sorted(map(len, cut)) == ([1, 1, 1] if budget == 0 else [1, 2])


def test_without_gradients_logits_in_bf16_are_not_rounded() -> None:
    """GPT-Neo's logits lie far from zero, where bf16 numbers are a quarter apart."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(200, 64).bfloat16(), torch.randn(500, 64).bfloat16()
    weight += 8 * hidden.mean(0) - 4
    targets = torch.randint(0, 500, (200,))
    exact = cross_entropy(hidden.float() @ weight.float().T, targets, reduction="sum")
    with torch.no_grad():
        ours = summed_cross_entropy(hidden, weight, None, targets)
    assert ours.item() == pytest.approx(exact.item(), rel=1e-6)
