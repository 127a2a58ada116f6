"""speed_up_training(): what the probe of packs reports about a model."""

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from chattune.models.packing import speed_up_training


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2,
        )
    ).eval()  # fmt: skip


def test_a_model_that_keeps_conversations_apart_has_no_problem() -> None:
    assert speed_up_training(llama(), longest=64).problem is None


def test_a_model_that_mixes_conversations_says_so() -> None:
    """BLOOM takes positions from the mask (ALiBi), so that they do not start anew in a pack."""
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=2))
    assert "pack" in str(speed_up_training(model, longest=64).problem)


def test_an_error_of_the_probe_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would otherwise look like an architecture that cannot be packed."""
    model = llama()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(model.model.layers[1], "forward", broken)
    problem = speed_up_training(model, longest=64).problem
    assert problem == (
        "it cannot compute a pack (CUDA error: an illegal memory access was encountered)"
    )


def test_the_probe_computes_the_longest_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    lengths = []
    forward = model.model.forward

    def watched(ids: torch.Tensor, **arguments: object) -> object:
        lengths.append(ids.shape[1])
        return forward(ids, **arguments)

    monkeypatch.setattr(model.model, "forward", watched)
    speed_up_training(model, longest=123)
    assert 123 in lengths
    assert 123 + 7 + 40 in lengths
