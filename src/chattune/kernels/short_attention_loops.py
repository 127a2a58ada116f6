"""Compiled attention over a pack of short conversations, forward and backward, in fp32 or bf16.

Only pairs of a token and one that it may see are computed. All arithmetic is in fp32.
"""

import numba
import numpy as np

from chattune.kernels.elementwise import exp, fma, narrow, widen
from chattune.kernels.jit import compiled


@compiled(parallel=True)
def attend(query, key, value, starts, window, probabilities, out):
    """Write the causal attention of each conversation to `out` (tokens, heads, size).

    `query` is (tokens, heads, size); `key` and `value` are (tokens, key heads, size). Conversation
    c holds the tokens from starts[c] to starts[c + 1]. A token sees itself and the `window` - 1
    tokens before it. `probabilities` receives a square matrix for each conversation and head, one
    after the other, and is written only where a token sees another.
    """
    heads = query.shape[1]
    group = heads // key.shape[1]
    for task in numba.prange((len(starts) - 1) * heads):
        c, h = task // heads, task % heads
        tokens = slice(starts[c], starts[c + 1])
        q, k = _head(query[tokens], h), _head(key[tokens], h // group)
        v, mixed = _head(value[tokens], h // group), np.zeros(q.shape, np.float32)
        p = _square(probabilities, starts, c, h, heads)
        for i in range(len(q)):
            first = max(0, i - window + 1)
            _scores(q, k, i, first, p)
            _softmax(p, i, first)
            _add_rows(mixed, i, p, v, first, i + 1)
        _put(mixed, out[tokens], h)


@compiled(parallel=True)
def attend_gradient(
    query, key, value, starts, window, probabilities, grad, d_query, d_key, d_value
):
    """Write the gradients for the three inputs of `attend`, given that for its output."""
    heads, key_heads = query.shape[1], key.shape[1]
    group = heads // key_heads
    for task in numba.prange((len(starts) - 1) * key_heads):
        c, key_head = task // key_heads, task % key_heads
        tokens = slice(starts[c], starts[c + 1])
        k, v = _head(key[tokens], key_head), _head(value[tokens], key_head)
        dk, dv = np.zeros(k.shape, np.float32), np.zeros(k.shape, np.float32)
        d_scores = np.empty((len(k), len(k)), np.float32)
        for h in range(key_head * group, (key_head + 1) * group):
            q, g = _head(query[tokens], h), _head(grad[tokens], h)
            dq, p = np.zeros(q.shape, np.float32), _square(probabilities, starts, c, h, heads)
            for i in range(len(q)):
                first = max(0, i - window + 1)
                _scores(g, v, i, first, d_scores)
                _softmax_gradient(p, d_scores, i, first)
                _add_rows(dq, i, d_scores, k, first, i + 1)
            for j in range(len(q)):
                last = min(len(q), j + window)
                _add_rows(dk, j, d_scores.T, q, j, last)
                _add_rows(dv, j, p.T, g, j, last)
            _put(dq, d_query[tokens], h)
        _put(dk, d_key[tokens], key_head)
        _put(dv, d_value[tokens], key_head)


@compiled()
def _head(states, h):
    """Return head h of states (tokens, heads, size) as an fp32 matrix of its own."""
    out = np.empty((states.shape[0], states.shape[2]), np.float32)
    for t in range(len(out)):
        for k in range(out.shape[1]):
            out[t, k] = widen(states[t, h, k])
    return out


@compiled()
def _put(head, states, h):
    """Write a matrix (tokens, size) to head h of `states` (tokens, heads, size)."""
    for t in range(len(head)):
        for k in range(head.shape[1]):
            states[t, h, k] = narrow(head[t, k], states[t, h, k])


@compiled()
def _square(probabilities, starts, c, h, heads):
    """Return the probabilities of conversation c and head h, (tokens, tokens)."""
    before = 0
    for i in range(c):
        before += (starts[i + 1] - starts[i]) ** 2
    length = starts[c + 1] - starts[c]
    offset = before * heads + h * length**2
    return probabilities[offset : offset + length**2].reshape(length, length)


@compiled()
def _scores(left, right, i, first, out):
    """Write the products of row i of `left` with the rows `first` to i of `right` to out[i]."""
    j = first
    while j + 4 <= i + 1:  # left[i] is loaded once for four rows
        out[i, j], out[i, j + 1], out[i, j + 2], out[i, j + 3] = _four_dots(left, i, right, j)
        j += 4
    while j <= i:
        out[i, j] = _dot(left, i, right, j)
        j += 1


@compiled(fastmath=True)
def _four_dots(left, i, right, j):
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for k in range(left.shape[1]):
        a += left[i, k] * right[j, k]
        b += left[i, k] * right[j + 1, k]
        c += left[i, k] * right[j + 2, k]
        d += left[i, k] * right[j + 3, k]
    return a, b, c, d


@compiled(fastmath=True)
def _dot(left, i, right, j):
    total = np.float32(0)
    for k in range(left.shape[1]):
        total += left[i, k] * right[j, k]
    return total


@compiled()
def _softmax(scores, i, first):
    """Turn the scores of row i, from column `first` to i, into probabilities in place."""
    largest = scores[i, first]
    for j in range(first + 1, i + 1):
        largest = max(largest, scores[i, j])
    for j in range(first, i + 1):
        scores[i, j] = exp(scores[i, j] - largest)
    inverse = np.float32(1) / _sum(scores, i, first)
    for j in range(first, i + 1):
        scores[i, j] *= inverse


@compiled(fastmath=True)
def _sum(rows, i, first):
    total = np.float32(0)
    for j in range(first, i + 1):
        total += rows[i, j]
    return total


@compiled()
def _softmax_gradient(p, grads, i, first):
    """Turn the gradients for row i of the probabilities p into those for the scores, in place."""
    mean = _product(p, grads, i, first)
    for j in range(first, i + 1):
        grads[i, j] = p[i, j] * (grads[i, j] - mean)


@compiled(fastmath=True)
def _product(left, right, i, first):
    total = np.float32(0)
    for j in range(first, i + 1):
        total += left[i, j] * right[i, j]
    return total


@compiled()
def _add_rows(out, i, weights, rows, first, last):
    """Add the sum of weights[i, j] * rows[j], for j from `first` to before `last`, to out[i]."""
    j = first
    while j + 4 <= last:  # out[i] is loaded and stored once for four rows
        a, b, c, d = weights[i, j], weights[i, j + 1], weights[i, j + 2], weights[i, j + 3]
        for k in range(out.shape[1]):
            sums = fma(b, rows[j + 1, k], fma(a, rows[j, k], out[i, k]))
            out[i, k] = fma(d, rows[j + 3, k], fma(c, rows[j + 2, k], sums))
        j += 4
    while j < last:
        a = weights[i, j]
        for k in range(out.shape[1]):
            out[i, k] = fma(a, rows[j, k], out[i, k])
        j += 1
