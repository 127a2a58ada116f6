"""A weight matrix that is multiplied a few rows at a time: memory is read once, rounded."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch.nn.functional import linear

_FEW = 16  # rows: beyond it the int8 kernel computes longer than a conversion to bf16 takes
_LARGE = 1 << 22  # weights: above it _by_digits reads more than it costs
_LARGEST = 32512.0  # of 16 bits, signed, with room for rounding


class Matrix(Protocol):
    """x (rows, in) -> (rows, out), either of them in fp32 or bf16."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        ...


def matrix(tensors: Mapping[str, torch.Tensor], name: str, *, bf16: bool = True) -> Matrix:
    """The matrix of that name: int8 if it has a `.scale` beside it, else as it is.

    `bf16` says whether the machine multiplies many rows fast in bf16; if not, int8 goes by fp32.
    """
    weight = tensors[name]
    if weight.dtype == torch.int8:
        scale = tensors[f"{name}.scale"]
        if weight.numel() >= _LARGE and _has_int8_products():
            return _by_digits(weight, scale.float())
        return _int8(weight, scale, torch.bfloat16 if bf16 else torch.float32)
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu":
        return _blocked(weight)
    return lambda x: linear(x.to(weight.dtype), weight)


def _int8(weight: torch.Tensor, scale: torch.Tensor, wide: torch.dtype) -> Matrix:
    def multiply(x: torch.Tensor) -> torch.Tensor:
        if len(x) <= _FEW:
            return torch._weight_int8pack_mm(x.to(torch.bfloat16), weight, scale)
        return (linear(x.to(wide), weight.to(wide)) * scale).to(x.dtype)

    return multiply


def _has_int8_products() -> bool:
    return torch.cpu._is_vnni_supported() and hasattr(torch.ops.onednn, "qlinear_pointwise")


def _by_digits(weight: torch.Tensor, scale: torch.Tensor) -> Matrix:
    """oneDNN's product of unsigned by signed bytes, which reads weights as fast as memory gives.

    For 8 bits of input would lose too much, a row becomes 16 bits, x = top / _LARGEST * (256 high +
    low - 2^15), and its two digits two rows of one product.
    """
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zero = torch.zeros(len(weight), dtype=torch.int64)
    half = torch.tensor(2.0**15 + 0.5)
    digits = torch.tensor([1.0, 256.0]) / _LARGEST

    def product(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, packed, scale, zero, bias, 1.0, 0, torch.float32, "none", [], ""
        )
        return result

    # Added to both digits' rows, so 257 times in all, it takes the 2^15 back.
    sums = product(torch.ones(1, weight.shape[1], dtype=torch.uint8), None)[0]
    back = sums * (-(2.0**15) / 257)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        rows, width = x.shape
        x = x.float()
        top = x.abs().amax(1, keepdim=True).clamp_(min=1e-30)
        whole = torch.addcmul(half, x, _LARGEST / top).to(torch.int32)
        low_high = whole.view(torch.uint8).view(rows, width, 4)[..., :2].transpose(1, 2)
        both = product(low_high.reshape(2 * rows, width), back)
        return torch.bmm((top * digits)[:, None], both.view(rows, 2, -1))[:, 0]

    return multiply


def _blocked(weight: torch.Tensor) -> Matrix:
    """bf16 in oneDNN's own order, made once: half again as fast as leaving it to each product."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return lambda x: linear(x.to(torch.bfloat16), weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    product = torch.ops.mkldnn._linear_pointwise

    def multiply(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = product(x.to(torch.bfloat16), packed, None, "none", [], "")
        return result

    return multiply
