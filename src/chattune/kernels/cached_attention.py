"""Attention of single new tokens over a cache of keys and values, compiled for a CPU."""

import numba
import numpy as np

from chattune.kernels.elementwise import exp, fma, narrow, total, widen
from chattune.kernels.jit import compiled


@compiled(parallel=True)
def attend(qkv, keys, values, slots, lows, ends, out):
    """Store one token's key and value per row, and write what its query sees to `out`.

    `qkv` (rows, 3 * width) holds query, key and value side by side; row r belongs to cache slot
    `slots[r]`. `keys` and `values` are (slots, heads, capacity, head size), fp32 or bf16. The new
    token's place in them is `ends[r]`, and it sees the places from `lows[r]` to `ends[r]`. `out` is
    (rows, width). Scores are not scaled: a family that scales them scales its queries.
    """
    # A task is one head of one row, so that threads have equal work and write apart. Scores and
    # sums take four places at a time: the query, and the running sum, are then loaded once for
    # four.
    heads, head_size = keys.shape[1], keys.shape[3]
    for task in numba.prange(len(slots) * heads):
        r, head = task // heads, task % heads
        slot, low, end = slots[r], lows[r], ends[r]
        new_key, new_value = keys[slot, head, end], values[slot, head, end]
        for k in range(head_size):
            new_key[k] = narrow(qkv[r, (heads + head) * head_size + k], new_key[k])
            new_value[k] = narrow(qkv[r, (2 * heads + head) * head_size + k], new_value[k])
        query = qkv[r, head * head_size : (head + 1) * head_size]
        seen_keys = keys[slot, head, low : end + 1]
        seen_values = values[slot, head, low : end + 1]
        weights = _softmax_scores(query, seen_keys)
        denominator = total(weights)
        mixed = _weighted_sum(weights, seen_values)
        for k in range(head_size):
            out[r, head * head_size + k] = mixed[k] / denominator


@compiled()
def _softmax_scores(query, keys):
    """Return e to each key's score less the largest one; not yet divided by their sum."""
    scores = np.empty(len(keys), np.float32)
    fours = len(scores) - len(scores) % 4
    for i in range(0, fours, 4):
        four = _four_dots(query, keys[i], keys[i + 1], keys[i + 2], keys[i + 3])
        scores[i], scores[i + 1], scores[i + 2], scores[i + 3] = four
    for i in range(fours, len(scores)):
        scores[i] = dot(query, keys[i])
    largest = scores.max()
    for i in range(len(scores)):
        scores[i] = exp(scores[i] - largest)
    return scores


@compiled()
def _weighted_sum(weights, values):
    """Return the sum of the rows of `values` (places, head size), each times its weight."""
    head_size = values.shape[1]
    mixed = np.zeros(head_size, np.float32)
    fours = len(weights) - len(weights) % 4
    for i in range(0, fours, 4):
        a, b, c, d = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        v, w, x, y = values[i], values[i + 1], values[i + 2], values[i + 3]
        for k in range(head_size):
            half = fma(a, widen(v[k]), fma(b, widen(w[k]), mixed[k]))
            mixed[k] = fma(c, widen(x[k]), fma(d, widen(y[k]), half))
    for i in range(fours, len(weights)):
        for k in range(head_size):
            mixed[k] = fma(weights[i], widen(values[i, k]), mixed[k])
    return mixed


@compiled(fastmath=True)
def dot(x, y):
    """Return the dot product of x (n), fp32, with y (n), fp32 or bf16."""
    result = np.float32(0)
    for k in range(len(x)):
        result += widen(y[k]) * x[k]
    return result


@compiled(fastmath=True)
def _four_dots(query, a, b, c, d):
    s = t = u = v = np.float32(0)
    for k in range(len(query)):
        s += widen(a[k]) * query[k]
        t += widen(b[k]) * query[k]
        u += widen(c[k]) * query[k]
        v += widen(d[k]) * query[k]
    return s, t, u, v
