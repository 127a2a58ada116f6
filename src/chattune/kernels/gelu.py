"""GELU in its tanh approximation: on a CPU, forward and backward are one pass over memory each.

Over 1,024 x 3,072 numbers in bf16 they took 1.5 ms together, where PyTorch took 4.2 (Zen 5, two
cores).
"""

from typing import Any

import torch
from torch import nn

from chattune.kernels import is_compiled_for


class TanhGelu(nn.Module):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): nn.GELU(approximate="tanh")."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return GELU of x, of any shape; by compiled loops where they can compute with x."""
        if not is_compiled_for(x):
            return nn.functional.gelu(x, approximate="tanh")
        out: torch.Tensor = _CompiledGelu.apply(x)  # type: ignore[no-untyped-call]
        return out


class _CompiledGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        from chattune.kernels import elementwise, jit

        ctx.save_for_backward(x)
        return jit.compute_elementwise(elementwise.gelu, [x])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        from chattune.kernels import elementwise, jit

        return jit.compute_elementwise(elementwise.gelu_gradient, [*ctx.saved_tensors, grad])
