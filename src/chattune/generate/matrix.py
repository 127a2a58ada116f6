"""A weight matrix outside of the decoding step: for the rows of a prompt, few or many."""

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from chattune.generate import kernels

# Rows beyond which PyTorch's product is faster. Weights in int8 it converts first, and to fp32 that
# takes longer than our product.
_FEW, _FEW_BY_FP32 = 16, 128

Matrix = Callable[[torch.Tensor], torch.Tensor]  # x (rows, in) -> (rows, out)


def matrix(weight: torch.Tensor, scale: torch.Tensor, *, bf16: bool = True) -> Matrix:
    """Of weight (out, in) in int8, bf16 or fp32, each row times its scale (out).

    `bf16` says whether the machine multiplies many rows fast in bf16; if not, int8 goes by fp32.
    Few rows beside int8 are rounded to 16 bits.
    """
    dense, few = weight.dtype, _FEW
    if dense == torch.int8:
        dense, few = (torch.bfloat16, _FEW) if bf16 else (torch.float32, _FEW_BY_FP32)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        if len(x) <= few:
            return kernels.multiply(x, weight, scale)
        product = linear(x.to(dense), weight.to(dense))
        return product * scale if weight.dtype == torch.int8 else product

    return multiply
