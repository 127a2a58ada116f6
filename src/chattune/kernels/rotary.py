"""Rotary positions (Su et al. 2021, RoFormer): on a CPU, one pass forward and one backward."""

from typing import Any

import numpy as np
import torch

from chattune.kernels import is_compiled_for


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Return queries or keys x (tokens, heads * size), rotated by position and scaled.

    `cos` and `sin` (tokens, size) are transformers': the angles stand in the first half of a row
    and once more in the second. Number i of a head's first half and number i of its second are the
    two coordinates that an angle rotates. All have the same dtype; arithmetic is in fp32.
    """
    if is_compiled_for(x):
        out: torch.Tensor = _CompiledRotation.apply(  # type: ignore[no-untyped-call]
            x, cos, sin, scale
        )
        return out
    heads = x.view(len(x), -1, cos.shape[1])
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return ((heads * cos[:, None] + turned * sin[:, None]) * scale).view_as(x)


class _CompiledRotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale: float
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.scale = scale
        return _rotate(x, cos, sin, scale, forwards=True)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, ctx.scale, forwards=False), None, None, None


def _rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, scale: float, *, forwards: bool
) -> torch.Tensor:
    from chattune.kernels import jit, row_loops

    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    by_head = (jit.as_array(t.detach()).reshape(len(x), -1, cos.shape[1]) for t in (x, out))
    source, target = by_head
    angles = (jit.as_array(t.detach()) for t in (cos, sin))
    factors = np.float32(scale), np.float32(scale if forwards else -scale)
    jit.run_kernel(row_loops.rotate_rows, source, *angles, *factors, target)
    return out
