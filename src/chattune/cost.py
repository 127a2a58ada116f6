"""Floating-point operations of a training step, counted from a model's shape.

A multiply-add counts as two operations. Only matrix products are counted; norms, activations and
dropout are limited by the rate of memory.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The share of device.matmul_rate() that the products with a model's weights reach in a training
# step on a CPU (False: in fp32, True: in bf16). It covers what an estimate leaves out: attention,
# the adapter and everything that is no matrix product.
TRAINING_SHARE = {False: 0.75, True: 0.55}


def training_operations(
    layers: float,
    head: float,
    *,
    tokens: float,
    supervised: float,
    adapter: float = 0,
    attention: float = 0,
    recomputed: bool = False,
) -> float:
    """Return the operations that training an adapter on `tokens` tokens takes.

    `layers`, `head` (the output layer) and `adapter` are numbers of weights. The base is frozen, so
    each of its weights is multiplied once in the forward pass and once for the gradient of the
    inputs: 4 operations a token, and 6 if activations are recomputed. The output layer works on the
    `supervised` tokens alone and is never recomputed. The adapter's weights need their own gradient
    as well: 6. `attention` is a number of operations, which is added unchanged.
    """
    frozen = (6 if recomputed else 4) * layers * tokens + 4 * head * supervised
    return frozen + 6 * adapter * tokens + attention


def attention_operations(
    lengths: Iterable[int], width: int, windows: Sequence[int | None]
) -> float:
    """Return the operations that causal attention takes to train on conversations.

    `lengths` are their numbers of tokens, and `windows` has an entry for each layer: how many
    tokens back a query sees, itself included, or None for all. A query and a key that it sees
    take `width` multiply-adds for their score and as many for the weighted value, in the forward
    pass and for the gradient of both factors.
    """
    pairs = sum(_causal_pairs(length, window) for length in lengths for window in windows)
    return 2 * 6 * width * pairs


def _causal_pairs(length: int, window: int | None) -> int:
    """Return how many pairs of a query and a key that it sees a conversation has."""
    visible = min(length, window or length)
    return visible * (visible + 1) // 2 + (length - visible) * visible


def matrix_weights(model: "PreTrainedModel") -> tuple[int, int]:
    """Return the number of weights in the layers' matrices and in the output layer.

    Input embeddings are left out, because they are looked up and not multiplied.
    """
    from torch import nn

    head = model.get_output_embeddings().weight
    others = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head)}
    layers = sum(p.numel() for p in model.parameters() if p.dim() > 1 and id(p) not in others)
    return layers, head.numel()


def gpt_layer_weights(layers: int, width: int) -> int:
    """Return the number of weights in a GPT's layers, for a base whose files are not at hand.

    A layer has four attention matrices of width x width and two of width x 4 width in its MLP.
    """
    return 12 * layers * width**2
