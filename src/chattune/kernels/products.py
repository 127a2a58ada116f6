"""Linear layers for decoding on a CPU: activations by weights in int8, bf16 or fp32.

A token costs reading every weight once. PyTorch's int8 kernel reads at half of the memory's rate
(docs/decisions/0004), and its bf16 and fp32 products are made for many rows of activations. These
loops are for few rows.
"""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch.nn.functional import linear, pad

from chattune.kernels.cached_attention import dot
from chattune.kernels.dot_products import COLUMNS_AT_ONCE, dot_products
from chattune.kernels.elementwise import gelu_gate, widen
from chattune.kernels.gelu import TanhGelu
from chattune.kernels.jit import as_array, compiled, run_kernel

# Rows of weights that a thread takes at once. With several rows of activations, these weights stay
# in the second-level cache while all activations pass.
_TILE_ROWS = 32
# Columns that are taken at once, a multiple of COLUMNS_AT_ONCE: eight rows of int16 or fp32
# activations then stay in the first-level cache.
_TILE_COLUMNS = 768
# Largest sum of the absolute values of _TILE_COLUMNS rounded activations: times the largest int8
# weight, 127, it is still below 2^31.
_MAX_ABSOLUTE_SUM = np.float32(1.6e7)

# Rows up to which our loops are faster than PyTorch's product in a dtype. Many rows by an int8
# weight are multiplied in bf16, so that its limit is bf16's.
_FEW_ROWS = {torch.bfloat16: 16, torch.float32: 32}


@dataclass(frozen=True)
class Linear:
    """A linear layer that computes with our loops or with PyTorch, whichever is faster.

    `weight` is (out, in) in int8, bf16 or fp32; `scale` (out) is each row's scale, ones unless the
    weight is int8; `bias` is (out). `bf16` says whether this machine multiplies bf16 fast. If it
    does, PyTorch multiplies many rows by an int8 weight in bf16. If it does not, our loops multiply
    any number of rows by an int8 weight, because PyTorch would turn the weight into fp32 first.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    bf16: bool

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor], name: str, *, bf16: bool) -> "Linear":
        """Return the layer whose weight has this name in `tensors`, with its scale and bias.

        A weight that is not in int8 needs no `.scale` there, and a layer without a bias no `.bias`.
        """
        weight = tensors[name]
        scale = tensors.get(f"{name}.scale", torch.ones(len(weight)))
        bias = tensors.get(f"{name}.bias", torch.zeros(len(weight)))
        return cls(weight, scale, bias, bf16)

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weight, scale and bias."""
        return self.weight, self.scale, self.bias

    def __call__(
        self, x: torch.Tensor, *, gelu: bool = False, add_to: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the layer's output, fp32 (rows, out), for x (rows, in); see `fused_linear`."""
        is_int8 = self.weight.dtype == torch.int8
        dtype = torch.bfloat16 if is_int8 else self.weight.dtype
        if (is_int8 and not self.bf16) or len(x) <= _FEW_ROWS[dtype]:
            return fused_linear(x, *self.tensors, gelu=gelu, add_to=add_to)
        out = linear(x.to(dtype), self.weight.to(dtype)).float()
        out = (out.mul_(self.scale) if is_int8 else out).add_(self.bias)
        out = TanhGelu()(out) if gelu else out
        return out if add_to is None else add_to.add_(out)


@dataclass(frozen=True)
class OutputLayer:
    """The layer that makes logits, with the mean row of its weight apart: see `without_mean`.

    `linear` has the weight less that row; `mean` is (in).
    """

    linear: Linear
    mean: torch.Tensor

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor]) -> "OutputLayer":
        """Return the layer that is called `head` in a decoder's tensors."""
        return cls(Linear.of(tensors, "head", bf16=False), tensors["head.mean"])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, fp32 (rows, vocabulary), of x (rows, in)."""
        logits = fused_linear(x, *self.linear.tensors)
        run_kernel(_add_dot_products, *map(as_array, (x, self.mean, logits)))
        return logits


def fused_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    gelu: bool = False,
    add_to: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute a linear layer with our loops: x (rows, in) by weight (out, in), scale and bias
    (out).

    The result is fp32 (rows, out). With `gelu` it is the GELU of that; with `add_to` (fp32,
    contiguous) it is added to that tensor in place. A row has the same bits whichever and however
    many rows stand beside it.
    """
    assert add_to is None or (add_to.dtype == torch.float32 and add_to.is_contiguous())
    out = torch.empty(len(x), len(weight)) if add_to is None else add_to
    arrays = map(as_array, (padded(x), weight, scale, bias))
    run_kernel(fused_linear_loop, *arrays, int(gelu), int(add_to is not None), as_array(out))
    return out


def padded(x: torch.Tensor) -> torch.Tensor:
    """Return x (rows, width) in fp32; unless it is one row, append zero rows to a multiple of four.

    The loops have dot products for one, four and eight rows of activations.
    """
    rows = 1 if len(x) == 1 else -(-len(x) // 4) * 4
    x = x.detach().float()
    return x if rows == len(x) else pad(x, (0, 0, 0, rows - len(x)))


# With one row of activations the rate of memory is the limit: the weights are read in the order in
# which they lie, and prefetched 1,024 columns ahead. With several rows a tile's weights are read
# again and again, so the next rows of the tile are prefetched instead.
_dot_one = dot_products(1, columns_ahead=1024)
_dot_four, _dot_eight = (dot_products(rows, rows_ahead=3) for rows in (4, 8))


def _as_operand(x, weight):
    """Return x (rows, width) in the dtype that goes with the weight's, and each row's scale.

    Defined for compiled code only.
    """


@overload(_as_operand)
def _overload_as_operand(x, weight):
    return _rounded_to_int16 if weight.dtype == types.int8 else _unchanged


def _unchanged(x, weight):
    return x, np.ones(len(x), np.float32)


def _rounded_to_int16(x, weight):
    """Round each row to int16, with a scale that keeps every sum over a tile within int32.

    The scale follows from the largest absolute value, or, where a tile holds so many large values
    that its sum with weights of 127 could overflow, from the tile's sum of absolute values.
    """
    rounded, scales = np.empty(x.shape, np.int16), np.empty(len(x), np.float32)
    for r in range(len(x)):
        largest = largest_sum = np.float32(0)
        for k in range(0, x.shape[1], _TILE_COLUMNS):
            tile_largest, tile_sum = _absolute_values(x[r, k : k + _TILE_COLUMNS])
            largest, largest_sum = max(largest, tile_largest), max(largest_sum, tile_sum)
        scales[r] = max(
            largest / np.float32(32767), largest_sum / _MAX_ABSOLUTE_SUM, np.float32(1e-30)
        )
        inverse = np.float32(1) / scales[r]
        for k in range(x.shape[1]):
            rounded[r, k] = np.int16(np.int32(np.floor(x[r, k] * inverse + np.float32(0.5))))
    return rounded, scales


@compiled(fastmath=True)
def _absolute_values(x):
    """Return the largest absolute value in x (n), and the sum of all of them."""
    largest = total = np.float32(0)
    for k in range(len(x)):
        absolute = abs(x[k])
        largest = max(largest, absolute)
        total += absolute
    return largest, total


@compiled(fastmath=True)
def _dot_rest(weights, x):
    """Return the dot product over the columns at the end that dot_products() leaves out."""
    total = np.float32(0)
    for k in range(len(x) - len(x) % COLUMNS_AT_ONCE, len(x)):
        total += widen(weights[k]) * np.float32(x[k])
    return total


@compiled(parallel=True)
def fused_linear_loop(activations, weight, scale, bias, gelu, add, out):
    """Write the output of a linear layer to `out` (rows, out), or add it; see fused_linear().

    `activations` (padded rows, in) are as padded() makes them; `out` may have fewer rows. `gelu`
    and `add` are 0 or 1. Every caller passes them as int64, because Numba compiles a function again
    for every other type, and for a literal.
    """
    # Threads share the rows of the weight. Sums over tiles of columns are added up in fp32, in the
    # same order for one row as for many, so that a row has the same bits in both cases.
    x, x_scales = _as_operand(activations, weight)
    rows, height, width = len(x), len(weight), x.shape[1]
    for tile in numba.prange((height + _TILE_ROWS - 1) // _TILE_ROWS):
        first, end = tile * _TILE_ROWS, min(height, (tile + 1) * _TILE_ROWS)
        sums = np.zeros((rows, _TILE_ROWS), np.float32)
        if rows == 1:
            for j in range(first, end):
                for k in range(0, width, _TILE_COLUMNS):
                    k_end = min(width, k + _TILE_COLUMNS)
                    sums[0, j - first] += np.float32(_dot_one(weight, j, x, 0, k, k_end)[0])
        else:
            for k in range(0, width, _TILE_COLUMNS):
                k_end = min(width, k + _TILE_COLUMNS)
                for r in range(0, rows - 7, 8):
                    for j in range(first, end):
                        eight = _dot_eight(weight, j, x, r, k, k_end)
                        for n in range(8):
                            sums[r + n, j - first] += np.float32(eight[n])
                if rows % 8 == 4:
                    for j in range(first, end):
                        four = _dot_four(weight, j, x, rows - 4, k, k_end)
                        for n in range(4):
                            sums[rows - 4 + n, j - first] += np.float32(four[n])
        if width % COLUMNS_AT_ONCE:
            for r in range(rows):
                for j in range(first, end):
                    sums[r, j - first] += _dot_rest(weight[j], x[r])
        for r in range(len(out)):
            for j in range(first, end):
                value = sums[r, j - first] * (scale[j] * x_scales[r]) + bias[j]
                if gelu:
                    value *= gelu_gate(value)
                if add:
                    value += out[r, j]
                out[r, j] = value


@compiled()
def _add_dot_products(x, vector, out):
    """Add to every number in row r of `out` (rows, m) the dot product of x[r] with `vector`."""
    for r in range(len(x)):
        product = dot(x[r], vector)
        for j in range(out.shape[1]):
            out[r, j] += product
