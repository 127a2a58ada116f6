"""Compiled loops over rows, in fp32 or bf16: RMS norm, rotary positions, gated SiLU."""

import math

import numba
import numpy as np

from chattune.kernels.elementwise import exp, narrow, widen
from chattune.kernels.jit import compiled

_PIECE = 4096  # numbers that a thread takes at once


@compiled(parallel=True)
def normalize_rows(x, weight, epsilon, out):
    """Write the RMS norm of each row of x (rows, width) to `out`; all in fp32, or all in bf16."""
    rows = max(1, _PIECE // x.shape[1])
    for piece in numba.prange((len(x) + rows - 1) // rows):
        part = slice(piece * rows, (piece + 1) * rows)
        normalize(x[part], weight, epsilon, out[part])


@compiled()
def normalize(x, weight, epsilon, out):
    """Write what normalize_rows() does, on one thread; x and `out` may be the same array."""
    for r in range(len(x)):
        inverse = _inverse_rms(x[r], epsilon)
        for k in range(x.shape[1]):
            out[r, k] = narrow(widen(x[r, k]) * inverse * widen(weight[k]), out[r, k])


@compiled(parallel=True)
def normalize_rows_gradient(x, grad, weight, epsilon, out):
    """Write the gradient for the RMS norm's input x, given that for its output, to `out`."""
    rows = max(1, _PIECE // x.shape[1])
    for piece in numba.prange((len(x) + rows - 1) // rows):
        part = slice(piece * rows, (piece + 1) * rows)
        _normalize_gradient_piece(x[part], grad[part], weight, epsilon, out[part])


@compiled()
def _normalize_gradient_piece(x, grad, weight, epsilon, out):
    width = np.float32(x.shape[1])
    for r in range(len(x)):
        inverse = _inverse_rms(x[r], epsilon)
        # With n = x inverse, the gradient is inverse (g w - n mean(g w n)).
        along = _weighted_product(grad[r], weight, x[r]) / width * inverse * inverse
        for k in range(x.shape[1]):
            direct = widen(grad[r, k]) * widen(weight[k])
            out[r, k] = narrow(inverse * (direct - widen(x[r, k]) * along), out[r, k])


@compiled(fastmath=True)
def _inverse_rms(row, epsilon):
    total = np.float32(0)
    for k in range(len(row)):
        total += widen(row[k]) * widen(row[k])
    return np.float32(1) / np.float32(math.sqrt(total / np.float32(len(row)) + epsilon))


@compiled(fastmath=True)
def _weighted_product(grad, weight, row):
    total = np.float32(0)
    for k in range(len(row)):
        total += widen(grad[k]) * widen(weight[k]) * widen(row[k])
    return total


@compiled(parallel=True)
def rotate_rows(x, cos, sin, cos_factor, sin_factor, out):
    """Write x (tokens, heads, size), rotated by the positions' angles, to `out`.

    `cos` and `sin` (tokens, size) are multiplied by their factors, and have the same numbers in
    both halves of a row. In each head, number i of the first half and number i of the second are
    the two coordinates that an angle rotates.
    """
    rows = max(1, _PIECE // (x.shape[1] * x.shape[2]))
    for piece in numba.prange((len(x) + rows - 1) // rows):
        part = slice(piece * rows, (piece + 1) * rows)
        rotate(x[part], cos[part], sin[part], cos_factor, sin_factor, out[part])


@compiled()
def rotate(x, cos, sin, cos_factor, sin_factor, out):
    """Write what rotate_rows() does, on one thread; x and `out` may be the same array."""
    half = x.shape[2] // 2
    for t in range(len(x)):
        for h in range(x.shape[1]):
            for i in range(half):
                first, second = widen(x[t, h, i]), widen(x[t, h, half + i])
                c, s = widen(cos[t, i]) * cos_factor, widen(sin[t, i]) * sin_factor
                out[t, h, i] = narrow(first * c - second * s, out[t, h, i])
                out[t, h, half + i] = narrow(second * c + first * s, out[t, h, i])


@compiled(parallel=True)
def gate_by_silu(gate, up, out):
    """Write SiLU of `gate` (n) times `up` (n) to `out` (n)."""
    for piece in numba.prange((len(gate) + _PIECE - 1) // _PIECE):
        part = slice(piece * _PIECE, (piece + 1) * _PIECE)
        multiply_by_silu(gate[part], up[part], out[part])


@compiled()
def multiply_by_silu(gate, up, out):
    """Write what gate_by_silu() does, on one thread."""
    for i in range(len(gate)):
        x = widen(gate[i])
        out[i] = narrow(x * _sigmoid(x) * widen(up[i]), out[i])


@compiled(parallel=True)
def gate_by_silu_gradient(gate, up, grad, d_gate, d_up):
    """Write the gradients for both inputs, given that for the output; all arrays are (n)."""
    for piece in numba.prange((len(gate) + _PIECE - 1) // _PIECE):
        part = slice(piece * _PIECE, (piece + 1) * _PIECE)
        _gate_gradient_piece(gate[part], up[part], grad[part], d_gate[part], d_up[part])


@compiled()
def _gate_gradient_piece(gate, up, grad, d_gate, d_up):
    for i in range(len(gate)):
        x, g = widen(gate[i]), widen(grad[i])
        share = _sigmoid(x)
        silu = x * share
        d_up[i] = narrow(g * silu, d_up[i])
        slope = share + silu * (np.float32(1) - share)
        d_gate[i] = narrow(g * widen(up[i]) * slope, d_gate[i])


@compiled()
def _sigmoid(x):
    return np.float32(1) / (np.float32(1) + exp(-x))
