"""A linear layer outside of the decoding step: for the rows of a prompt, few or many."""

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from chattune.generate import kernels
from chattune.models.gelu import TanhGelu

# Rows up to which our kernel is faster than PyTorch's product in a dtype.
_FEW = {torch.bfloat16: 16, torch.float32: 32}

# x (rows, in), and `gelu` and `onto` as kernels.multiply takes them -> (rows, out) in fp32
Affine = Callable[..., torch.Tensor]


def affine(
    weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, bf16: bool = True
) -> Affine:
    """Of weight (out, in) in int8, bf16 or fp32; bias and scale are (out), scale not ones for int8.

    `bf16` says whether the machine multiplies many rows fast in bf16, which int8 weights are turned
    into then. If not, our kernel takes any number of rows beside int8, rounded to 16 bits.
    """
    rounded = weight.dtype == torch.int8
    dense = torch.bfloat16 if rounded else weight.dtype
    always = rounded and not bf16

    def apply(
        x: torch.Tensor, *, gelu: bool = False, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        if always or len(x) <= _FEW[dense]:
            return kernels.multiply(x, weight, scale, bias, gelu=gelu, onto=onto)
        out = linear(x.to(dense), weight.to(dense)).float()
        out = (out.mul_(scale) if rounded else out).add_(bias)
        out = TanhGelu()(out) if gelu else out
        return out if onto is None else onto.add_(out)

    return apply
