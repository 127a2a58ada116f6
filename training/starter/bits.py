"""Bits per byte: how well a language model foretells a text, whatever its tokenizer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy


@torch.inference_mode()
def bits_per_byte(
    model: Any, ids: Sequence[int], n_bytes: int, end: int, window: int = 512
) -> float:
    """Of texts whose `ids` are laid end to end, each closed by `end`, in windows of 512.

    What is foretold includes the ends; `n_bytes` are the texts' own, in UTF-8.
    """
    stream = torch.tensor([end, *ids])
    nats = 0.0
    for start in range(0, len(stream) - 1, window):
        piece = stream[start : start + window + 1].to(model.device)
        logits = model(piece[None, :-1]).logits[0].float()
        nats += cross_entropy(logits, piece[1:], reduction="sum").item()
    return nats / math.log(2) / n_bytes
