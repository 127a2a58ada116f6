"""The layout of a step's conversations: laid end to end in packs, without padding.

A step's gradient is the mean over all its supervised tokens however they are cut into packs, so the
layout changes the time and the memory, and not the result.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from chattune.template import IGNORED_LABEL


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lay a step's conversations end to end.

    Returns `input_ids` and `labels` (1, tokens), and `lengths`, the conversations' numbers of
    tokens. A conversation's first token follows nothing, so its label is ignored.
    """
    ids = torch.cat([torch.as_tensor(row["input_ids"]) for row in rows])
    labels = torch.cat([torch.as_tensor(row["labels"]) for row in rows])
    lengths = [len(row["input_ids"]) for row in rows]
    labels[torch.tensor([0, *lengths[:-1]]).cumsum(0)] = IGNORED_LABEL
    return {"input_ids": ids[None].long(), "labels": labels[None].long(), "lengths": lengths}


def passes(
    batch: Mapping[str, Any], budget: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """Cut the result of `collate` into packs of at most `budget` tokens.

    Yields the ids and labels of each pack, (1, tokens), and the lengths of its conversations.
    """
    lengths = batch["lengths"]
    ids, labels = (batch[k].split(lengths, dim=1) for k in ("input_ids", "labels"))
    for pack in packs(lengths, budget):
        yield (
            torch.cat([ids[i] for i in pack], dim=1),
            torch.cat([labels[i] for i in pack], dim=1),
            [lengths[i] for i in pack],
        )


def packs(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Distribute conversations over few packs of at most `budget` tokens; return their indices.

    The packs have about the same size: the longest conversations go first, each into the emptiest
    pack. A conversation that fills or exceeds the budget is a pack of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    alone = [[i] for i in order if lengths[i] >= budget]
    order = order[len(alone) :]
    fewest = -(-sum(lengths[i] for i in order) // max(1, budget))
    for count in range(fewest, len(order) + 1):
        filled: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for i in order:
            emptiest = sizes.index(min(sizes))
            filled[emptiest].append(i)
            sizes[emptiest] += lengths[i]
        if all(size <= budget for size in sizes):
            return alone + filled
    raise AssertionError("packs of one conversation always fit")
