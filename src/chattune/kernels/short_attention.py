"""Causal attention over a pack of short conversations, by compiled loops on a CPU.

Matrix products of 60 tokens by 60 take PyTorch longer to prepare than to compute, and half of what
they compute is masked. The loops compute what is seen, all conversations and heads in one call.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from chattune.kernels import is_compiled_for
from chattune.kernels.packed_attention import packed_attention

_SHORT = 128  # tokens; matrix products are faster for longer conversations


def attend_pack(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    heads: int,
    window: int | None,
) -> torch.Tensor:
    """Return what packed_attention does, by loops if all conversations are short."""
    if max(lengths) > _SHORT or not is_compiled_for(query):
        return packed_attention(query, key, value, lengths, heads, window)
    size, starts = query.shape[1] // heads, np.cumsum([0, *lengths])
    by_head = (x.view(len(x), -1, size) for x in (query, key, value))
    out: torch.Tensor = _ShortAttention.apply(  # type: ignore[no-untyped-call]
        *by_head, starts, window or len(query)
    )
    return out.view_as(query)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: Any,
        window: int,
    ) -> torch.Tensor:
        from chattune.kernels import jit, short_attention_loops

        squares = int((np.diff(starts) ** 2).sum())
        probabilities = torch.empty(query.shape[1] * squares)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        inputs = (jit.as_array(x.detach()) for x in (query, key, value))
        results = (jit.as_array(x) for x in (probabilities, out))
        jit.run_kernel(short_attention_loops.attend, *inputs, starts, window, *results)
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.starts, ctx.window = starts, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from chattune.kernels import jit, short_attention_loops

        *inputs, probabilities = ctx.saved_tensors
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        jit.run_kernel(
            short_attention_loops.attend_gradient,
            *(jit.as_array(x) for x in inputs),
            ctx.starts,
            ctx.window,
            *(jit.as_array(x) for x in (probabilities, grad, *grads)),
        )
        return *grads, None, None
