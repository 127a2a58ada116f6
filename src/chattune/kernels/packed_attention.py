"""Causal attention over a pack: conversations laid end to end, of which each sees only itself.

PyTorch's fused kernel takes no packs on a CPU, and its backward pass there reaches a tenth of the
matrix rate. Here the scores are made block by block with plain matrix products. A block's keys end
with its last query, and begin where a local layer's window does, so that no block is computed only
to be masked out. Short conversations share a block, under a mask that keeps them apart, because
calling PyTorch once more takes longer than computing the scores that are masked. Scores are in
fp32, as in transformers' GPT-Neo; probabilities are kept for the backward pass in the dtype of the
values.
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
    window: int | None,
) -> torch.Tensor:
    """Return the attention of a pack; query and result are (tokens, heads * head size).

    Keys and values have as many heads or fewer, each of which serves as many heads of the queries
    as follow one another. `lengths` are the numbers of tokens of the conversations, in order. With
    a `window` a token sees itself and the `window` - 1 tokens before it. Scores are not scaled by
    the head's size: a family that scales them scales its queries.
    """
    if query.is_cuda and query.dtype != torch.float32:  # FlashAttention takes no fp32
        return _flash_attention(query, key, value, lengths, heads, window)
    out: torch.Tensor = _BlockAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, lengths, heads, window
    )
    return out


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: Sequence[int],
        heads: int,
        window: int | None,
    ) -> torch.Tensor:
        result = torch.empty_like(query)
        kept: list[torch.Tensor] = []
        has_backward = any(ctx.needs_input_grad[:3])
        size = query.shape[1] // heads
        for group, q, k, v, out in _groups(lengths, size, query, key, value, result):
            q_wide, k_wide = q.float(), k.float()
            for rows, columns in _blocks(q.shape[1], window):
                q_rows = _by_key_head(q_wide[:, rows], k)
                scores = torch.bmm(q_rows, k_wide[:, columns].transpose(1, 2))
                by_head = scores.view(heads, -1, scores.shape[2])
                by_head += _mask(group, rows, columns, window, q.device)
                probabilities = torch.softmax(scores, -1).to(v.dtype)
                mixed = torch.bmm(probabilities, v[:, columns])
                out[:, rows] = mixed.view(heads, -1, size)
                if has_backward:
                    kept.append(probabilities)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.layout = lengths, heads, window
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        lengths, heads, window = ctx.layout
        grads = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        blocks, size = iter(kept), query.shape[1] // heads
        for _, q, k, v, g, dq, dk, dv in _groups(lengths, size, query, key, value, grad, *grads):
            for rows, columns in _blocks(q.shape[1], window):
                probabilities = next(blocks)
                q_rows, g_rows = _by_key_head(q[:, rows], k), _by_key_head(g[:, rows], k)
                dv[:, columns].baddbmm_(probabilities.transpose(1, 2), g_rows)
                d_probabilities = torch.bmm(g_rows, v[:, columns].transpose(1, 2))
                d_scores = torch._softmax_backward_data(
                    d_probabilities, probabilities, -1, probabilities.dtype
                )
                dq[:, rows] = torch.bmm(d_scores, k[:, columns]).view(heads, -1, size)
                dk[:, columns].baddbmm_(d_scores.transpose(1, 2), q_rows)
        return *grads, None, None, None


def _by_key_head(states: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return states (heads, tokens, size) as (key heads, heads a key head * tokens, size)."""
    return states.reshape(len(key), -1, states.shape[2])


def _groups(lengths: Sequence[int], size: int, *tensors: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    """Split a pack's tensors (tokens, heads * size) into groups of conversations.

    A group is one conversation, or several that fit into one block. Yields the lengths in a group,
    and for each tensor its view of the group (heads, tokens, size).
    """
    groups: list[tuple[int, ...]] = []
    for length in lengths:
        if groups and sum(groups[-1]) + length <= _BLOCK:
            groups[-1] += (length,)
        else:
            groups.append((length,))
    sizes = [sum(group) for group in groups]
    for group, *pieces in zip(groups, *(torch.split(t, sizes) for t in tensors), strict=True):
        yield group, *(p.view(len(p), -1, size).transpose(0, 1) for p in pieces)


def _blocks(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of query rows, each with the columns of the keys that its rows may see."""
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        yield slice(start, stop), slice(0 if window is None else max(0, start - window + 1), stop)


def _mask(
    group: tuple[int, ...], rows: slice, columns: slice, window: int | None, device: torch.device
) -> torch.Tensor:
    """Return what is added to a block of scores: 0 where a row may see a column, else -infinity."""
    if len(group) > 1:  # then the block is the whole group
        return _group_mask(group, window, device)
    shift = rows.start - columns.start
    return _band_mask(rows.stop - rows.start, columns.stop - columns.start, shift, window, device)


@functools.lru_cache(maxsize=64)
def _group_mask(group: tuple[int, ...], window: int | None, device: torch.device) -> torch.Tensor:
    """Return the mask of several conversations in one block."""
    size = sum(group)
    index = torch.arange(len(group)).repeat_interleave(torch.tensor(group)).to(device)
    other = index[:, None] != index
    return _band_mask(size, size, 0, window, device).masked_fill(other, float("-inf"))


@functools.lru_cache(maxsize=256)
def _band_mask(
    rows: int, columns: int, shift: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Return the mask where row i sees column j if 0 <= i + shift - j < window."""
    distance = torch.arange(rows)[:, None] + shift - torch.arange(columns)
    seen = (distance >= 0) & (distance < (columns + rows if window is None else window))
    return torch.where(seen, 0.0, float("-inf")).to(device)


@functools.lru_cache(maxsize=8)  # all layers ask for the same, and the copy waits for the GPU
def _boundaries(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the offsets at which conversations begin, and the end of the last one."""
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def _flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    heads: int,
    window: int | None,
) -> torch.Tensor:
    """Return the attention of a pack by FlashAttention on CUDA (torch >= 2.12), in fp16 or bf16."""
    from torch.nn.attention.varlen import varlen_attn

    boundaries = _boundaries(tuple(lengths), query.device)
    size = query.shape[1] // heads
    q, k, v = (x.view(len(x), -1, size) for x in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        boundaries,
        boundaries,
        max(lengths),
        max(lengths),
        scale=1.0,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out.flatten(1)
