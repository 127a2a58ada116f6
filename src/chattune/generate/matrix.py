"""A weight matrix that is multiplied a few rows at a time: memory is read once, rounded."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch.nn.functional import linear

_FEW = 16  # rows: beyond it the int8 kernel computes longer than a conversion to bf16 takes


class Matrix(Protocol):
    """x (rows, in) -> (rows, out)."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        ...


def matrix(tensors: Mapping[str, torch.Tensor], name: str, *, bf16: bool = True) -> Matrix:
    """The matrix of that name: int8 if it has a `.scale` beside it, else as it is.

    `bf16` says whether the machine multiplies many rows fast in bf16; if not, int8 goes by fp32.
    """
    weight = tensors[name]
    if weight.dtype == torch.int8:
        wide = torch.bfloat16 if bf16 else torch.float32
        return _int8(weight, tensors[f"{name}.scale"], wide)
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu":
        return _blocked(weight)
    return lambda x: linear(x, weight)


def _int8(weight: torch.Tensor, scale: torch.Tensor, wide: torch.dtype) -> Matrix:
    def multiply(x: torch.Tensor) -> torch.Tensor:
        if len(x) <= _FEW:
            return torch._weight_int8pack_mm(x, weight, scale)
        return (linear(x.to(wide), weight.to(wide)) * scale).to(x.dtype)

    return multiply


def _blocked(weight: torch.Tensor) -> Matrix:
    """bf16 in oneDNN's own order, made once: half again as fast as leaving it to each product."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return lambda x: linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    product = torch.ops.mkldnn._linear_pointwise

    def multiply(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = product(x, packed, None, "none", [], "")
        return result

    return multiply
