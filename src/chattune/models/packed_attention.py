"""Causal attention over conversations laid end to end: each sees itself alone, at its own cost.

PyTorch's fused kernel takes no packing on a CPU, and its backward pass there runs at a tenth of
the matrix rate. Here the scores are made block by block with plain matrix products (the keys of a
block end at its last query, and begin where a local layer's window does), so no masked block is
computed. Short conversations share a block, under a mask that keeps them apart: a call of PyTorch's
takes longer than what is computed for nothing. Scores are in fp32, as in transformers' GPT-Neo;
probabilities are kept for the backward pass in the weights' dtype.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

_BLOCK = 128  # queries; a block of scores (12 heads, 512 keys) then stays in the cache


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    heads: int,
    window: int | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Attention of a pack: query, key, value and result are (tokens, hidden).

    `lengths` are the conversations' tokens, in order. With a `window` a token sees itself and the
    `window` - 1 tokens before it.
    """
    if query.is_cuda and query.dtype != torch.float32:  # fp32: a GPU without bf16
        return _varlen(query, key, value, lengths, heads, window, scale)
    out: torch.Tensor = _Blockwise.apply(  # type: ignore[no-untyped-call]
        query, key, value, lengths, heads, window, scale
    )
    return out


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: Sequence[int],
        heads: int,
        window: int | None,
        scale: float,
    ) -> torch.Tensor:
        result = torch.empty_like(query)
        kept: list[torch.Tensor] = []
        grows = any(ctx.needs_input_grad[:3])
        for group, q, k, v, out in _groups(lengths, heads, query, key, value, result):
            q_wide, k_wide = q.float() * scale if scale != 1 else q.float(), k.float()
            for rows, columns in _blocks(q.shape[1], window):
                scores = torch.bmm(q_wide[:, rows], k_wide[:, columns].transpose(1, 2))
                scores += _mask(group, rows, columns, window, q.device)
                odds = torch.softmax(scores, -1).to(v.dtype)
                out[:, rows] = torch.bmm(odds, v[:, columns])
                if grows:
                    kept.append(odds)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout = lengths, heads, window, scale
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        lengths, heads, window, scale = ctx.layout
        grads = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        every_odds = iter(kept)
        for _, q, k, v, g, dq, dk, dv in _groups(lengths, heads, query, key, value, grad, *grads):
            for rows, columns in _blocks(q.shape[1], window):
                odds, g_rows = next(every_odds), g[:, rows]
                dv[:, columns].baddbmm_(odds.transpose(1, 2), g_rows)
                d_odds = torch.bmm(g_rows, v[:, columns].transpose(1, 2))
                d_scores = torch._softmax_backward_data(d_odds, odds, -1, odds.dtype)
                if scale != 1:
                    d_scores *= scale
                dq[:, rows] = torch.bmm(d_scores, k[:, columns])
                dk[:, columns].baddbmm_(d_scores.transpose(1, 2), q[:, rows])
        return *grads, None, None, None, None


def _groups(lengths: Sequence[int], heads: int, *packs: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    """One conversation, or several that fit a block: their lengths, and of each of the packs
    (tokens, hidden) a view (heads, tokens, head).
    """
    groups: list[tuple[int, ...]] = []
    for length in lengths:
        if groups and sum(groups[-1]) + length <= _BLOCK:
            groups[-1] += (length,)
        else:
            groups.append((length,))
    sizes = [sum(group) for group in groups]
    for group, *pieces in zip(groups, *(torch.split(p, sizes) for p in packs), strict=True):
        yield group, *(p.view(len(p), heads, -1).transpose(0, 1) for p in pieces)


def _blocks(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Query rows with the key columns that they may see."""
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        yield slice(start, stop), slice(0 if window is None else max(0, start - window + 1), stop)


def _mask(
    group: tuple[int, ...], rows: slice, columns: slice, window: int | None, device: torch.device
) -> torch.Tensor:
    if len(group) > 1:
        return _apart(group, window, device)
    shift = rows.start - columns.start
    return _band(rows.stop - rows.start, columns.stop - columns.start, shift, window, device)


@functools.lru_cache(maxsize=64)
def _apart(group: tuple[int, ...], window: int | None, device: torch.device) -> torch.Tensor:
    """The mask of several conversations in one block."""
    size = sum(group)
    which = torch.arange(len(group)).repeat_interleave(torch.tensor(group)).to(device)
    other = which[:, None] != which
    return _band(size, size, 0, window, device).masked_fill(other, float("-inf"))


@functools.lru_cache(maxsize=256)
def _band(
    rows: int, columns: int, shift: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """0 where row i may see column j (0 <= i + shift - j < window), minus infinity elsewhere."""
    back = torch.arange(rows)[:, None] + shift - torch.arange(columns)
    seen = (back >= 0) & (back < (window or columns + rows))
    return torch.where(seen, 0.0, float("-inf")).to(device)


@functools.lru_cache(maxsize=8)  # every layer asks for the same, and the copy waits for the GPU
def _edges(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where conversations begin, and where the last one ends."""
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    heads: int,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """FlashAttention over a pack on CUDA (torch >= 2.12); half precision only."""
    from torch.nn.attention.varlen import varlen_attn

    edges = _edges(tuple(lengths), query.device)
    q, k, v = (x.view(len(x), heads, -1) for x in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        edges,
        edges,
        max(lengths),
        max(lengths),
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
    )
    assert isinstance(out, torch.Tensor)
    return out.flatten(1)
