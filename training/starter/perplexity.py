"""Perplexity of plain texts: what a tuned model still knows of them beside its base."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

WINDOW = 512  # tokens that are read of each text
ROWS = 8  # texts that are computed together


@torch.inference_mode()
def perplexity(model: Any, texts: Sequence[Sequence[int]], end: int) -> float:
    """Return exp of the mean loss in nats per token, over the tokens of all texts.

    `texts` holds the token ids of each text. Each is read by itself after the token `end`, which is
    not predicted itself, and up to WINDOW tokens.
    """
    rows = sorted(([end, *ids[:WINDOW]] for ids in texts), key=len)
    nats, tokens = 0.0, 0
    for start in range(0, len(rows), ROWS):
        batch = [torch.tensor(row) for row in rows[start : start + ROWS]]
        # Attention is causal, so the padding at the end changes no token before it.
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=end)
        read = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(row) - 1, dtype=torch.bool) for row in batch], batch_first=True
        )
        logits = model(ids[:, :-1].to(model.device)).logits[read.to(model.device)]
        target = ids[:, 1:][read].to(model.device)
        nats += cross_entropy(logits.float(), target, reduction="sum").item()
        tokens += len(target)
    return math.exp(nats / tokens)
