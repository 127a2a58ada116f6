"""Compiled arithmetic on single numbers, and the loops over arrays that are made of it.

A loop for several threads splits its arrays into pieces of `_PIECE` numbers, and a separate
function works on each piece, in a plain loop that LLVM turns into vector instructions.
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from chattune.kernels.jit import compiled

_PIECE = 4096  # numbers that a thread takes at once: 16 KB of each array in fp32


def widen(value):
    """Return a number as fp32: int8 by value, uint16 as the bits of a bf16 number, fp32 as it is.

    Defined for compiled code only.
    """


@overload(widen, inline="always")
def _widen(value):
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: np.float32(value)


def narrow(value, like):
    """Return an fp32 number in the kind of `like`: fp32 as it is, uint16 as the bits of its bf16.

    Rounding is to the nearest bf16 number, ties go to even; NaN is not handled. Defined for
    compiled code only.
    """


@overload(narrow, inline="always")
def _narrow(value, like):
    if like == types.uint16:
        return _nearest_bf16
    return lambda value, like: value


def _nearest_bf16(value, like):
    bits = np.float32(value).view(np.uint32)
    # Adding half of the last kept bit, less one where that bit is even, rounds ties to even.
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF)))
    return np.uint16(rounded >> np.uint32(16))


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of fp32 numbers, rounded once.

    This is an LLVM instruction because Numba has no fused multiply-add, and fastmath, which would
    make one of a product and a sum, lets results depend on the arrays' memory (see `jit.compiled`).
    """

    def build(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), build


@compiled()
def exp(x):
    """Return e to the x in fp32, with x limited to about +-87.

    The relative error is at most 4e-6, and 3e-7 where x is between -1 and 1. With x = n ln 2 + f,
    where n is whole and f at most half of ln 2, the result is 2^n, which is an exponent field,
    times e^f, for which a polynomial of degree 6 is enough. The C library computes one number per
    call; this function becomes vector instructions.
    """
    x = min(max(x * np.float32(1.44269504), np.float32(-126)), np.float32(126))
    whole = np.floor(x + np.float32(0.5))
    fraction = (x - whole) * np.float32(0.69314718)
    series = np.float32(1 / 720)
    for factorial in (120, 24, 6, 2, 1, 1):
        series = fma(series, fraction, np.float32(1 / factorial))
    exponent = np.int32(np.int32(whole) + np.int32(127))
    return series * np.int32(exponent << np.int32(23)).view(np.float32)


@compiled()
def gelu_gate(x):
    """Return the factor by which GELU (tanh approximation) scales x, between 0 and 1.

    With u = sqrt(2 / pi) (x + 0.044715 x^3) it is 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)), which
    needs one exponential instead of a tanh.
    """
    two_u = x * fma(x * x, np.float32(0.07135481), np.float32(1.5957691))
    return np.float32(1) / (np.float32(1) + exp(-two_u))


@compiled(parallel=True)
def gelu(x, out):
    """Write GELU of x (n) to `out` (n); both fp32, or both bf16."""
    for piece in numba.prange((len(x) + _PIECE - 1) // _PIECE):
        part = slice(piece * _PIECE, (piece + 1) * _PIECE)
        _gelu_piece(x[part], out[part])


@compiled()
def _gelu_piece(x, out):
    for i in range(len(x)):
        value = widen(x[i])
        out[i] = narrow(value * gelu_gate(value), out[i])


@compiled(parallel=True)
def gelu_gradient(x, grad, out):
    """Write the gradient for GELU's input x (n), given that for its output, to `out` (n)."""
    for piece in numba.prange((len(x) + _PIECE - 1) // _PIECE):
        part = slice(piece * _PIECE, (piece + 1) * _PIECE)
        _gelu_gradient_piece(x[part], grad[part], out[part])


@compiled()
def _gelu_gradient_piece(x, grad, out):
    for i in range(len(x)):
        value = widen(x[i])
        gate = gelu_gate(value)
        # d/dx (x gate) = gate + x gate (1 - gate) d(2u)/dx
        slope = fma(value * value, np.float32(0.21406444), np.float32(1.5957691))
        derivative = fma(value * gate * (np.float32(1) - gate), slope, gate)
        out[i] = narrow(widen(grad[i]) * derivative, out[i])


@compiled(parallel=True)
def drop_by_seed(x, out, seed_low, seed_high, threshold):
    """Copy x (n) to `out` (n), with 0 wherever the 31 random bits of a position are < `threshold`.

    The bits follow from the position and the two halves (32 bits each) of a seed.
    """
    for piece in numba.prange((len(x) + _PIECE - 1) // _PIECE):
        part = slice(piece * _PIECE, (piece + 1) * _PIECE)
        _drop_piece(x[part], out[part], piece * _PIECE, seed_low, seed_high, threshold)


@compiled()
def _drop_piece(x, out, start, seed_low, seed_high, threshold):
    low, high, least = np.uint32(seed_low), np.uint32(seed_high), np.uint32(threshold)
    zero = x.dtype.type(0)
    for i in range(len(x)):
        bits = _scramble(np.uint32(np.uint32(start + i) ^ low), 16, 0x7FEB352D)
        bits = _scramble(np.uint32(bits ^ high), 15, 0x846CA68B)
        bits = np.uint32(bits ^ np.uint32(bits >> np.uint32(16)))
        out[i] = x[i] if np.uint32(bits >> np.uint32(1)) >= least else zero


@compiled()
def _scramble(bits, shift, factor):
    """Return one round of the 32-bit hash lowbias32 (Christopher Wellons).

    Every step is cast to 32 bits, because Numba computes integers in 64 bits, and a vector holds
    half as many of those.
    """
    mixed = np.uint32(bits ^ np.uint32(bits >> np.uint32(shift)))
    return np.uint32(mixed * np.uint32(factor))


@compiled(fastmath=True)
def sum_of(x):
    """Return the sum of x (n), fp32."""
    result = np.float32(0)
    for i in range(len(x)):
        result += x[i]
    return result


@compiled(fastmath=True)
def _squared_deviations(x, mean):
    result = np.float32(0)
    for i in range(len(x)):
        result += (x[i] - mean) ** 2
    return result


@compiled()
def layer_norm(h, weight, bias, epsilon):
    """Return the layer norm of each row of h (rows, width), fp32."""
    out = np.empty_like(h)
    width = h.shape[1]
    for r in range(len(h)):
        mean = sum_of(h[r]) / np.float32(width)
        variance = _squared_deviations(h[r], mean) / np.float32(width)
        inverse = np.float32(1) / np.float32(math.sqrt(variance + epsilon))
        for k in range(width):
            out[r, k] = (h[r, k] - mean) * inverse * weight[k] + bias[k]
    return out
