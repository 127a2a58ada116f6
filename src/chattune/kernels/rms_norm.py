"""RMS norm with a frozen weight: on a CPU, forward and backward are one pass over memory each.

The method is that of Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
"""

from typing import Any

import numpy as np
import torch

from chattune.kernels import is_compiled_for


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return each row of x (..., width) over its root mean square, times the weight (width).

    No gradient is computed for the weight. Both have the same dtype; arithmetic is in fp32.
    """
    if not is_compiled_for(x):
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        return weight.detach() * (wide * inverse).to(x.dtype)
    out: torch.Tensor = _CompiledNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return out


class _CompiledNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        from chattune.kernels import row_loops

        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return _compute_rows(row_loops.normalize_rows, [x], weight, epsilon)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from chattune.kernels import row_loops

        x, weight = ctx.saved_tensors
        kernel = row_loops.normalize_rows_gradient
        return _compute_rows(kernel, [x, grad], weight, ctx.epsilon), None, None


def _compute_rows(
    kernel: Any, inputs: list[torch.Tensor], weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    from chattune.kernels import jit

    out = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
    rows = [jit.as_array(t.detach()).reshape(-1, len(weight)) for t in (*inputs, out)]
    jit.run_kernel(kernel, *rows[:-1], jit.as_array(weight.detach()), np.float32(epsilon), rows[-1])
    return out
