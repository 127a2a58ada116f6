"""How a step's conversations are laid out in forward passes: end to end, nothing padded.

A step's gradient is the mean over all its supervised tokens however it is cut, so the layout
decides nothing but the time.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from chattune.template import IGNORED_LABEL


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A step's conversations end to end: input_ids and labels (1, tokens), and their lengths.

    A conversation's first token follows nothing, so it is never a target.
    """
    ids = torch.cat([torch.as_tensor(row["input_ids"]) for row in rows])
    labels = torch.cat([torch.as_tensor(row["labels"]) for row in rows])
    lengths = [len(row["input_ids"]) for row in rows]
    labels[torch.tensor([0, *lengths[:-1]]).cumsum(0)] = IGNORED_LABEL
    return {"input_ids": ids[None].long(), "labels": labels[None].long(), "lengths": lengths}


def passes(
    batch: Mapping[str, Any], budget: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[int]]]:
    """What `collate` made, cut into packs: ids and labels (1, tokens), and lengths, of each."""
    lengths = batch["lengths"]
    ids, labels = (batch[k].split(lengths, dim=1) for k in ("input_ids", "labels"))
    for pack in packs(lengths, budget):
        yield (
            torch.cat([ids[i] for i in pack], dim=1),
            torch.cat([labels[i] for i in pack], dim=1),
            [lengths[i] for i in pack],
        )


def packs(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of conversations, in as few packs of at most `budget` tokens as fit, alike in size.

    The longest go first, each into the emptiest pack. A conversation longer than the budget makes
    a pack alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    alone = [[i] for i in order if lengths[i] >= budget]
    order = order[len(alone) :]
    for count in range(-(-sum(lengths[i] for i in order) // max(1, budget)), len(order) + 1):
        filled: list[list[int]] = [[] for _ in range(count)]
        sizes = [0] * count
        for i in order:
            emptiest = sizes.index(min(sizes))
            filled[emptiest].append(i)
            sizes[emptiest] += lengths[i]
        if all(size <= budget for size in sizes):
            return alone + filled
    raise AssertionError("one conversation a pack fits")
