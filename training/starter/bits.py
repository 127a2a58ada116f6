"""Bits per byte: how well a language model predicts a text, comparable across tokenizers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy


@torch.inference_mode()
def bits_per_byte(
    model: Any, ids: Sequence[int], n_bytes: int, end: int, window: int = 512
) -> float:
    """Return the bits per byte of texts that are laid end to end and read in windows.

    `ids` are the tokens of all texts, each closed by the token `end`, which is predicted too.
    `n_bytes` is the size of the texts themselves in UTF-8.
    """
    stream = torch.tensor([end, *ids])
    nats = 0.0
    for start in range(0, len(stream) - 1, window):
        chunk = stream[start : start + window + 1].to(model.device)
        logits = model(chunk[None, :-1]).logits[0].float()
        nats += cross_entropy(logits, chunk[1:], reduction="sum").item()
    return nats / math.log(2) / n_bytes
