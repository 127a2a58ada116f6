"""The loss that reaches the optimiser is cross entropy over the supervised tokens, exactly."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from chattune.tune.batches import length_groups
from chattune.tune.loss import SupervisedLoss


def batch(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows, the second padded; some tokens supervised."""
    ids = torch.randint(0, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, :4] = -100
    labels[1, 9:], mask[1, 9:] = -100, 0
    return ids, labels, mask


def soft_capped() -> Gemma2ForCausalLM:
    """Its logits are more than the output layer applied to hidden states."""
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
    ids, labels, mask = batch(99)
    nats = SupervisedLoss(model)(ids, labels, mask)
    nats.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    count = int((labels[:, 1:] != -100).sum())
    theirs = model(ids, labels=labels, attention_mask=mask).loss * count
    theirs.backward()
    assert nats.item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_groups_hold_every_row_once_within_the_budget() -> None:
    lengths = [5, 90, 33, 30, 7, 6, 100, 31]
    groups = length_groups(lengths, budget=100)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[i] for i in group)
        assert lengths[group[0]] == longest
        assert len(group) == 1 or longest * len(group) <= 100
        assert min(lengths[i] for i in group) >= 0.7 * longest


def test_a_row_longer_than_the_budget_stands_alone() -> None:
    assert length_groups([300, 20, 20], budget=100) == [[0], [1, 2]]
