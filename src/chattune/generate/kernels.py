"""GPT-Neo on a CPU: a token through one block in a single call, and linear layers for prompts.

What a token costs is reading the weights once. PyTorch's operations for it, some twenty a layer,
take longer than that in a small model, and its int8 kernel reads at half of the memory's rate.
"""

import math

import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch.nn.functional import pad

from chattune.compiled import (
    LANES,
    as_array,
    call,
    compiled,
    exp,
    fma,
    gelu_share,
    narrow,
    products,
    widen,
)

_TOGETHER = 32  # rows of a matrix that a thread takes at once
_COLUMNS = 768  # that it takes at once: eight rows of x then stay in the nearest cache
_RUN = 64  # logits that are looked at together
_ROOM = np.float32(1.6e7)  # what rounded numbers may add up to: 127 times it is less than 2^31


def padded(x: torch.Tensor) -> torch.Tensor:
    """Rows of x (rows, width) as the kernels take them: fp32, one or a multiple of four."""
    rows = 1 if len(x) == 1 else -(-len(x) // 4) * 4
    x = x.detach().float()
    return x if rows == len(x) else pad(x, (0, 0, 0, rows - len(x)))


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    gelu: bool = False,
    onto: torch.Tensor | None = None,
) -> torch.Tensor:
    """x (rows, in) by weight (out, in) in int8, bf16 or fp32, times scale (out), plus bias (out).

    Then its GELU if asked for, in fp32 (rows, out), or added to `onto`, which is changed: in fp32,
    row after row. A row comes out the same beside few others and beside many.
    """
    assert onto is None or (onto.dtype == torch.float32 and onto.is_contiguous())
    out = torch.empty(len(x), len(weight)) if onto is None else onto
    bias = torch.zeros(len(weight)) if bias is None else bias
    given = map(as_array, (padded(x), weight, scale, bias))
    call(_multiply, *given, int(gelu), int(onto is not None), as_array(out))
    return out


# One row goes through its matrix as it lies in memory, several piece by piece.
_one = products(1, columns_ahead=1024)
_four, _eight = (products(rows, rows_ahead=3) for rows in (4, 8))


def _taken(x, weight):
    """Rows of x (rows, width) as products() takes them, and each row's scale."""


@overload(_taken)
def _(x, weight):
    return _rounded if weight.dtype == types.int8 else _as_it_is


def _as_it_is(x, weight):
    return x, np.ones(len(x), np.float32)


def _rounded(x, weight):
    """To 16 bits, or a little less: so that no sum over _COLUMNS of int8 weights leaves 32."""
    found, scales = np.empty(x.shape, np.int16), np.empty(len(x), np.float32)
    for r in range(len(x)):
        top = room = np.float32(0)
        for k in range(0, x.shape[1], _COLUMNS):
            size, total = _sizes(x[r, k : k + _COLUMNS])
            top, room = max(top, size), max(room, total)
        scales[r] = max(top / np.float32(32767), room / _ROOM, np.float32(1e-30))
        by = np.float32(1) / scales[r]
        for k in range(x.shape[1]):
            found[r, k] = np.int16(np.int32(np.floor(x[r, k] * by + np.float32(0.5))))
    return found, scales


@compiled(fastmath=True)
def _sizes(x):
    """The largest size of a number, and the sum of all of them."""
    top = total = np.float32(0)
    for k in range(len(x)):
        size = abs(x[k])
        top = max(top, size)
        total += size
    return top, total


@compiled(fastmath=True)
def _rest(weights, x):
    """What products() leaves out at the end of a row."""
    total = np.float32(0)
    for k in range(len(x) - len(x) % LANES, len(x)):
        total += widen(weights[k]) * np.float32(x[k])
    return total


@compiled(parallel=True)
def _multiply(given, weight, scale, bias, gelu, add, out):
    """x weight' scale + bias, (rows, out), its GELU if asked for, to `out` or added to it.

    For the rows of `given`, which is x, see padded(); `out` may end before the last of them. `gelu`
    and `add` are np.int64 of 0 or 1: Numba would compile all this again for each constant.
    """
    x, scales = _taken(given, weight)
    rows, height, width = len(x), len(weight), x.shape[1]
    for part in numba.prange((height + _TOGETHER - 1) // _TOGETHER):
        first, stop = part * _TOGETHER, min(height, (part + 1) * _TOGETHER)
        found = np.zeros((rows, _TOGETHER), np.float32)
        if rows == 1:  # row by row as they lie in memory, and the parts added up as below
            for j in range(first, stop):
                for k in range(0, width, _COLUMNS):
                    end = min(width, k + _COLUMNS)
                    found[0, j - first] += np.float32(_one(weight, j, x, 0, k, end)[0])
        else:
            for k in range(0, width, _COLUMNS):
                end = min(width, k + _COLUMNS)
                for r in range(0, rows - 7, 8):
                    for j in range(first, stop):
                        sums = _eight(weight, j, x, r, k, end)
                        for n in range(8):
                            found[r + n, j - first] += np.float32(sums[n])
                if rows % 8 == 4:
                    for j in range(first, stop):
                        last = _four(weight, j, x, rows - 4, k, end)
                        for n in range(4):
                            found[rows - 4 + n, j - first] += np.float32(last[n])
        if width % LANES:
            for r in range(rows):
                for j in range(first, stop):
                    found[r, j - first] += _rest(weight[j], x[r])
        for r in range(len(out)):
            for j in range(first, stop):
                value = found[r, j - first] * (scale[j] * scales[r]) + bias[j]
                if gelu:
                    value *= gelu_share(value)
                if add:
                    value += out[r, j]
                out[r, j] = value


@compiled(fastmath=True)
def _sum(x):
    total = np.float32(0)
    for k in range(len(x)):
        total += x[k]
    return total


@compiled(fastmath=True)
def _squares(x, mean):
    total = np.float32(0)
    for k in range(len(x)):
        total += (x[k] - mean) ** 2
    return total


@compiled()
def _layer_norm(h, weight, bias, epsilon):
    out = np.empty_like(h)
    width = h.shape[1]
    for r in range(len(h)):
        mean = _sum(h[r]) / np.float32(width)
        variance = _squares(h[r], mean) / np.float32(width)
        by = np.float32(1) / np.float32(math.sqrt(variance + epsilon))
        for k in range(width):
            out[r, k] = (h[r, k] - mean) * by * weight[k] + bias[k]
    return out


@compiled(fastmath=True)
def _four_scores(query, a, b, c, d):
    """The query by four keys: it is read once for them."""
    s = t = u = v = np.float32(0)
    for k in range(len(query)):
        s += widen(a[k]) * query[k]
        t += widen(b[k]) * query[k]
        u += widen(c[k]) * query[k]
        v += widen(d[k]) * query[k]
    return s, t, u, v


@compiled(fastmath=True)
def _score(query, key):
    s = np.float32(0)
    for k in range(len(query)):
        s += widen(key[k]) * query[k]
    return s


@compiled(parallel=True)
def _attend(qkv, keys, values, slots, lows, ends, out):
    """Each row's key and value go to place `end` of its slot; it sees those from `low` on."""
    heads, size = keys.shape[1], keys.shape[3]
    for task in numba.prange(len(slots) * heads):
        r, head = task // heads, task % heads
        slot, low, end = slots[r], lows[r], ends[r]
        key, value = keys[slot, head, end], values[slot, head, end]
        for k in range(size):
            key[k] = narrow(qkv[r, (heads + head) * size + k], key[k])
            value[k] = narrow(qkv[r, (2 * heads + head) * size + k], value[k])
        scores = np.empty(end + 1 - low, np.float32)
        fours = len(scores) - len(scores) % 4
        query, near = qkv[r, head * size : (head + 1) * size], keys[slot, head, low : end + 1]
        for i in range(0, fours, 4):
            four = _four_scores(query, near[i], near[i + 1], near[i + 2], near[i + 3])
            scores[i], scores[i + 1], scores[i + 2], scores[i + 3] = four
        for i in range(fours, len(scores)):
            scores[i] = _score(query, near[i])
        top = scores.max()
        for i in range(len(scores)):
            scores[i] = exp(scores[i] - top)
        total = _sum(scores)
        mixed, far = np.zeros(size, np.float32), values[slot, head, low : end + 1]
        for i in range(0, fours, 4):
            a, b, c, d = scores[i], scores[i + 1], scores[i + 2], scores[i + 3]
            v, w, x, y = far[i], far[i + 1], far[i + 2], far[i + 3]
            for k in range(size):
                here = fma(a, widen(v[k]), fma(b, widen(w[k]), mixed[k]))
                mixed[k] = fma(c, widen(x[k]), fma(d, widen(y[k]), here))
        for i in range(fours, len(scores)):
            for k in range(size):
                mixed[k] = fma(scores[i], widen(far[i, k]), mixed[k])
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
    no, yes = np.int64(0), np.int64(1)
    projected = np.empty((rows, 3 * width), np.float32)
    mixed = np.zeros((rows, width), np.float32)
    inner = np.empty((rows, len(fc)), np.float32)
    x = _layer_norm(h, ln_1, ln_1_bias, epsilon)
    _multiply(x, qkv, qkv_scale, qkv_bias, no, no, projected)
    _attend(projected, keys, values, slots, lows, ends, mixed)
    _multiply(mixed, out, out_scale, out_bias, no, yes, h)
    x = _layer_norm(h, ln_2, ln_2_bias, epsilon)
    _multiply(x, fc, fc_scale, fc_bias, yes, no, inner)
    _multiply(inner, proj, proj_scale, proj_bias, no, yes, h)


@compiled()
def add_products(x, vector, out):
    """Add to each row of `out` the inner product of that row of x (rows, width) with a vector."""
    for r in range(len(x)):
        product = _score(x[r], vector)
        for j in range(out.shape[1]):
            out[r, j] += product


@compiled()
def odds(scores, top, by, out):
    """e to the (scores - top) by; nothing where it is too small for fp32, or the score infinite."""
    for i in range(len(scores)):
        x = (scores[i] - top) * by
        value = exp(x)
        out[i] = value if x > np.float32(-87) else np.float32(0)


@compiled()
def highest(logits, scores, ids):
    """Put the highest logits into `scores` and `ids`, best first; of equal ones the earlier first.

    Most of them stand in a run of which none is higher than the lowest so far.
    """
    found, most = 0, len(scores)
    for start in range(0, len(logits), _RUN):
        stop = min(start + _RUN, len(logits))
        if found == most:
            lowest, higher = scores[most - 1], np.int32(0)
            for i in range(start, stop):
                higher += np.int32(logits[i] > lowest)
            if higher == 0:
                continue
        for i in range(start, stop):
            value = logits[i]
            if found == most and not value > scores[most - 1]:
                continue
            place = min(found, most - 1)
            found = min(found + 1, most)
            while place > 0 and scores[place - 1] < value:
                scores[place], ids[place] = scores[place - 1], ids[place - 1]
                place -= 1
            scores[place], ids[place] = value, i
