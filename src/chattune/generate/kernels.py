"""Decoding on a CPU: a token through one block of GPT-Neo in a single call.

What a token costs is reading the weights once. PyTorch's operations for it, some twenty a layer,
take longer than that in a small model, and its int8 kernel reads at half of the memory's rate.
"""

import math

import numba
import numpy as np
import torch
from torch.nn.functional import pad

from chattune.compiled import as_array, call, compiled, exp, gelu_share, widen

_TOGETHER = 32  # rows of a matrix that a thread takes at once


def padded(x: torch.Tensor, weights: torch.dtype) -> torch.Tensor:
    """Rows of x (rows, width) as the kernels take them: fp32, one or a multiple of four.

    Beside fp32 weights one is computed as four are, so that it comes out the same to the bit.
    """
    rows = 1 if len(x) == 1 and weights != torch.float32 else -(-len(x) // 4) * 4
    return pad(x.detach().float(), (0, 0, 0, rows - len(x)))


def multiply(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x (rows, in) by weight (out, in) in int8, bf16 or fp32, times scale (out), in fp32.

    For a few rows: the weights are read once for all of them.
    """
    rows = padded(x, weight.dtype)
    out = torch.empty(len(rows), len(weight))
    none = np.zeros(len(weight), np.float32)
    call(_product, *map(as_array, (rows, weight, scale)), none, as_array(out))
    return out[: len(x)]


@compiled()
def _dot(weights, x):
    total = np.float32(0)
    for k in range(len(x)):
        total += widen(weights[k]) * x[k]
    return total


@compiled()
def _by_four(a, x, r):
    """With four rows of x from `r` on: what is loaded serves several products."""
    x0, x1, x2, x3 = x[r], x[r + 1], x[r + 2], x[r + 3]
    a0 = a1 = a2 = a3 = np.float32(0)
    for k in range(len(a)):
        a0 += a[k] * x0[k]
        a1 += a[k] * x1[k]
        a2 += a[k] * x2[k]
        a3 += a[k] * x3[k]
    return a0, a1, a2, a3


@compiled()
def _two_by_four(a, b, x, r):
    x0, x1, x2, x3 = x[r], x[r + 1], x[r + 2], x[r + 3]
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
    for k in range(len(a)):
        v, w = widen(a[k]), widen(b[k])
        a0 += v * x0[k]
        a1 += v * x1[k]
        a2 += v * x2[k]
        a3 += v * x3[k]
        b0 += w * x0[k]
        b1 += w * x1[k]
        b2 += w * x2[k]
        b3 += w * x3[k]
    return (a0, a1, a2, a3), (b0, b1, b2, b3)


@compiled(parallel=True)
def _multiply(x, weight, scale, bias, gelu, add, out):
    """x weight' scale + bias, (rows, out), its GELU if asked for, to `out` or added to it.

    For `rows` see padded().
    """
    rows, height = len(x), len(weight)
    for part in numba.prange((height + _TOGETHER - 1) // _TOGETHER):
        first, stop = part * _TOGETHER, min(height, (part + 1) * _TOGETHER)
        found = np.empty((rows, _TOGETHER), np.float32)
        if rows == 1:
            for j in range(first, stop):
                found[0, j - first] = _dot(weight[j], x[0])
        else:
            for j in range(first, stop, 2):
                i = min(j + 1, stop - 1)
                for r in range(0, rows, 4):
                    ones, others = _two_by_four(weight[j], weight[i], x, r)
                    for n in range(4):
                        found[r + n, j - first] = ones[n]
                        found[r + n, i - first] = others[n]
        for r in range(rows):
            for j in range(first, stop):
                value = found[r, j - first] * scale[j] + bias[j]
                if gelu:
                    value *= gelu_share(value)
                if add:
                    value += out[r, j]
                out[r, j] = value


@compiled()
def _product(x, weight, scale, bias, out):
    _multiply(x, weight, scale, bias, False, False, out)


@compiled()
def _layer_norm(h, weight, bias, epsilon):
    out = np.empty_like(h)
    width = h.shape[1]
    for r in range(len(h)):
        mean = np.float32(0)
        for k in range(width):
            mean += h[r, k]
        mean /= np.float32(width)
        square = np.float32(0)
        for k in range(width):
            square += (h[r, k] - mean) ** 2
        by = np.float32(1) / np.float32(math.sqrt(square / np.float32(width) + epsilon))
        for k in range(width):
            out[r, k] = (h[r, k] - mean) * by * weight[k] + bias[k]
    return out


@compiled(parallel=True)
def _attend(qkv, keys, values, slots, lows, ends, out):
    """Each row's key and value go to place `end` of its slot; it sees those from `low` on."""
    heads, size = keys.shape[1], keys.shape[3]
    for task in numba.prange(len(slots) * heads):
        r, head = task // heads, task % heads
        slot, low, end = slots[r], lows[r], ends[r]
        query = qkv[r, head * size : (head + 1) * size]
        for k in range(size):
            keys[slot, head, end, k] = qkv[r, (heads + head) * size + k]
            values[slot, head, end, k] = qkv[r, (2 * heads + head) * size + k]
        scores = np.empty(end + 1 - low, np.float32)
        near, far = keys[slot, head, low : end + 1], values[slot, head, low : end + 1]
        fours = len(scores) - len(scores) % 4
        for i in range(0, fours, 4):
            scores[i], scores[i + 1], scores[i + 2], scores[i + 3] = _by_four(query, near, i)
        for i in range(fours, len(scores)):
            scores[i] = _dot(near[i], query)
        top = scores[0]
        for i in range(1, len(scores)):
            top = max(top, scores[i])
        total = np.float32(0)
        for i in range(len(scores)):
            scores[i] = exp(scores[i] - top)
            total += scores[i]
        mixed = np.zeros(size, np.float32)
        for i in range(0, fours, 4):
            a, b, c, d = scores[i], scores[i + 1], scores[i + 2], scores[i + 3]
            v, w, x, y = far[i], far[i + 1], far[i + 2], far[i + 3]
            for k in range(size):
                mixed[k] += a * v[k] + b * w[k] + c * x[k] + d * y[k]
        for i in range(fours, len(scores)):
            for k in range(size):
                mixed[k] += scores[i] * far[i, k]
        for k in range(size):
            out[r, head * size + k] = mixed[k] / total


@compiled()
def block(
    h, ln_1, ln_1_bias, qkv, qkv_scale, qkv_bias, out, out_scale, out_bias,
    ln_2, ln_2_bias, fc, fc_scale, fc_bias, proj, proj_scale, proj_bias,
    keys, values, slots, lows, ends, epsilon,
):  # fmt: skip
    """One block of GPT-Neo, in place: h (rows, width) is one new token in each of some slots.

    `keys` and `values` are (slots, heads, room, head); for `slots`, `lows`, `ends` see _attend; of
    `h` there may be more rows than slots, see padded().
    """
    rows, width = h.shape
    projected = np.empty((rows, 3 * width), np.float32)
    mixed = np.zeros((rows, width), np.float32)
    inner = np.empty((rows, len(fc)), np.float32)
    x = _layer_norm(h, ln_1, ln_1_bias, epsilon)
    _multiply(x, qkv, qkv_scale, qkv_bias, False, False, projected)
    _attend(projected, keys, values, slots, lows, ends, mixed)
    _multiply(mixed, out, out_scale, out_bias, False, True, h)
    x = _layer_norm(h, ln_2, ln_2_bias, epsilon)
    _multiply(x, fc, fc_scale, fc_bias, True, False, inner)
    _multiply(inner, proj, proj_scale, proj_bias, False, True, h)
