"""SiLU of a gate times another input: on a CPU, forward and backward are one pass each.

The gate is that of Shazeer 2020, "GLU Variants Improve Transformer".
"""

from typing import Any

import torch
from torch.nn.functional import silu

from chattune.kernels import is_compiled_for


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return SiLU(gate) * up; both have the same shape and dtype."""
    if not is_compiled_for(gate):
        return silu(gate) * up
    out: torch.Tensor = _CompiledSwiglu.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _CompiledSwiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        from chattune.kernels import jit, row_loops

        ctx.save_for_backward(gate, up)
        return jit.compute_elementwise(row_loops.gate_by_silu, [gate, up])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from chattune.kernels import jit, row_loops

        gate, up = ctx.saved_tensors
        d_gate, d_up = (torch.empty_like(grad, memory_format=torch.contiguous_format) for _ in "gu")
        arrays = (jit.as_array(t).reshape(-1) for t in (gate, up, grad, d_gate, d_up))
        jit.run_kernel(row_loops.gate_by_silu_gradient, *arrays)
        return d_gate, d_up
