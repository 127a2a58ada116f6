"""A cache of keys and values: its memory, and the attention of a prompt's tokens over it."""

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

_QUERIES_AT_ONCE = 64  # tokens of a prompt whose attention is computed at once


def zeros_on_demand(shape: tuple[int, ...], *, bf16: bool) -> torch.Tensor:
    """Return zeros in bf16 or fp32 that take memory only where something is written.

    NumPy asks the system for zeroed pages, which exist from the first write on. PyTorch writes the
    zeros itself.
    """
    if bf16:
        return torch.from_numpy(np.zeros(shape, np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(np.zeros(shape, np.float32))


def attend_prompt(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    start: int,
    first: int = 0,
    window: int | None = None,
) -> torch.Tensor:
    """Return the attention of queries (tokens, heads, head size) at positions from `start` on.

    `keys` and `values` (key heads, capacity, head size) are one slot's cache, whose first place
    holds the position `first`; they hold the queries' own positions already. The query heads are
    shared out evenly among the key heads. With a `window` a token sees itself and the `window` - 1
    tokens before it. Scores are not scaled: a family that scales them scales its queries. The
    result has the shape of the queries.
    """
    # A few queries are computed at once, so that keys which none of them can see, because they come
    # later or lie before the window, are left out.
    reach = window or start + len(queries)
    lowest = max(first, start - reach + 1)  # the first position that any query sees
    stop = start + len(queries)
    seen_keys = keys[:, lowest - first : stop - first].float()
    seen_values = values[:, lowest - first : stop - first].float()
    shared = queries.shape[1] != len(keys)
    mixed = torch.empty_like(queries)
    for i in range(0, len(queries), _QUERIES_AT_ONCE):
        part = queries[i : i + _QUERIES_AT_ONCE]
        part_start, part_stop = start + i, start + i + len(part)
        low = max(lowest, part_start - reach + 1)
        distance = torch.arange(part_start, part_stop)[:, None] - torch.arange(low, part_stop)
        attended = scaled_dot_product_attention(
            part.transpose(0, 1)[None],
            seen_keys[None, :, low - lowest : part_stop - lowest],
            seen_values[None, :, low - lowest : part_stop - lowest],
            attn_mask=(distance >= 0) & (distance < reach),
            scale=1.0,
            enable_gqa=shared,
        )
        mixed[i : i + _QUERIES_AT_ONCE] = attended[0].transpose(0, 1)
    return mixed
