"""Attention of single new tokens over a cache of keys and values, compiled for a CPU."""

import numba
import numpy as np

from chattune.kernels.elementwise import exp, fma, narrow, sum_of, widen
from chattune.kernels.jit import compiled


@compiled(parallel=True)
def attend(projected, keys, values, slots, lows, places, out):
    """Store the key and value of one token per row, and write its attention to `out`.

    `projected` (rows, query width + 2 * key width) holds query, key and value side by side; row r
    belongs to cache slot `slots[r]`. `keys` and `values` are (slots, key heads, capacity, head
    size), fp32 or bf16. The query heads are shared out evenly among the key heads. The new token
    takes the place `places[r]` there, and sees the places from `lows[r]` to its own. `out` is
    (rows, query width). Scores are not scaled: a family that scales them scales its queries.
    """
    key_heads, head_size = keys.shape[1], keys.shape[3]
    heads = out.shape[1] // head_size
    for r in range(len(slots)):
        for head in range(key_heads):
            new_key, new_value = keys[slots[r], head, places[r]], values[slots[r], head, places[r]]
            for k in range(head_size):
                new_key[k] = narrow(projected[r, (heads + head) * head_size + k], new_key[k])
                value = projected[r, (heads + key_heads + head) * head_size + k]
                new_value[k] = narrow(value, new_value[k])
    # A task is one query head of one row, so that threads have equal work and write to separate
    # memory.
    for task in numba.prange(len(slots) * heads):
        r, head = task // heads, task % heads
        slot, low, place = slots[r], lows[r], places[r]
        key_head = head * key_heads // heads
        query = projected[r, head * head_size : (head + 1) * head_size]
        seen_keys = keys[slot, key_head, low : place + 1]
        seen_values = values[slot, key_head, low : place + 1]
        weights = _exponential_scores(query, seen_keys)
        denominator = sum_of(weights)
        mixed = _weighted_sum(weights, seen_values)
        for k in range(head_size):
            out[r, head * head_size + k] = mixed[k] / denominator


@compiled()
def _exponential_scores(query, keys):
    """Return e to (score - largest score) for each key, fp32.

    Four keys are taken at a time, so that the query is loaded once for four.
    """
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
    """Return the sum of the rows of `values` (places, head size), each times its weight.

    Four rows are taken at a time, so that the sum is loaded and stored once for four.
    """
    head_size = values.shape[1]
    mixed = np.zeros(head_size, np.float32)
    fours = len(weights) - len(weights) % 4
    for i in range(0, fours, 4):
        a, b, c, d = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        row_a, row_b, row_c, row_d = values[i], values[i + 1], values[i + 2], values[i + 3]
        for k in range(head_size):
            with_two = fma(a, widen(row_a[k]), fma(b, widen(row_b[k]), mixed[k]))
            mixed[k] = fma(c, widen(row_c[k]), fma(d, widen(row_d[k]), with_two))
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
    """Return the dot products of a query with four keys."""
    with_a = with_b = with_c = with_d = np.float32(0)
    for k in range(len(query)):
        with_a += widen(a[k]) * query[k]
        with_b += widen(b[k]) * query[k]
        with_c += widen(c[k]) * query[k]
        with_d += widen(d[k]) * query[k]
    return with_a, with_b, with_c, with_d
