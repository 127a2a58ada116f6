"""The operations of a training step, against counts made by hand."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from chattune.base import find_base
from chattune.cost import (
    attention_operations,
    gpt_layer_weights,
    matrix_weights,
    training_operations,
)
from chattune.models import shape_of


def test_the_operations_of_a_step_are_those_of_its_parts() -> None:
    frozen = training_operations(10, 5, tokens=100, supervised=30)
    assert frozen == 4 * 10 * 100 + 4 * 5 * 30
    with_adapter = training_operations(10, 5, tokens=100, supervised=30, adapter=2, attention=7)
    assert with_adapter == frozen + 6 * 2 * 100 + 7


def test_recomputing_activations_computes_the_layers_once_more() -> None:
    recomputed = training_operations(10, 5, tokens=100, supervised=30, recomputed=True)
    assert recomputed == training_operations(10, 5, tokens=100, supervised=30) + 2 * 10 * 100


@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (7, 3), (3, 3), (2, 3)])
def test_attention_counts_the_pairs_that_a_mask_leaves(length: int, window: int | None) -> None:
    mask = torch.ones(length, length).tril().triu(-length if window is None else 1 - window)
    assert attention_operations([length], 8, [window]) == 2 * 6 * 8 * mask.sum().item()


def test_attention_adds_up_over_conversations_and_layers() -> None:
    parts = [attention_operations([n], 8, [w]) for n in (4, 9) for w in (None, 3)]
    assert attention_operations([4, 9], 8, [None, 3]) == sum(parts)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_no_matrices(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    layers, head = matrix_weights(LlamaForCausalLM(config))
    assert (layers, head) == (2 * (4 * 8 * 8 + 3 * 8 * 16), 50 * 8)


def test_gpts_layers_are_counted_from_their_width() -> None:
    starter = find_base("starter")
    width, layers = starter.config["hidden_size"], starter.config["num_layers"]
    assert matrix_weights(shape_of(starter))[0] == gpt_layer_weights(layers, width)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=3, n_head=2))
    assert matrix_weights(gpt2) == (gpt_layer_weights(3, 8), 50 * 8)
