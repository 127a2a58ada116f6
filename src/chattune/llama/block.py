"""One transformer block of Llama's family for one new token in each of several replies, compiled.

PyTorch needs some thirty operations per layer for this, and calling them takes longer than reading
a small model's weights. Here it is one call.
"""

import math

import numpy as np

from chattune.kernels.cached_attention import attend
from chattune.kernels.jit import compiled
from chattune.kernels.products import fused_linear_loop
from chattune.kernels.row_loops import multiply_by_silu, normalize, rotate


@compiled()
def transformer_block(
    h, ln_1, qkv, qkv_scale, qkv_bias, q_norm, k_norm, out, out_scale, out_bias,
    ln_2, gate_up, gate_up_scale, gate_up_bias, down, down_scale, down_bias,
    keys, values, slots, lows, places, cos, sin, epsilon,
):  # fmt: skip
    """Compute one block in place: h (padded rows, width) is the residual stream before and after.

    The first len(slots) rows of h are tokens; padded() says why there may be more. For `keys`,
    `values`, `slots`, `lows` and `places` see attend(). `cos` and `sin` (tokens, head size) are
    those of each token's rotary angles, in both halves of a row. `q_norm` and `k_norm` are the
    norms of each head's queries and keys, or are empty. The other arguments are the block's
    weights.
    """
    tokens, rows, inner = len(slots), len(h), down.shape[1]
    no, yes = np.int64(0), np.int64(1)  # of one type for all calls: see fused_linear_loop()
    key_heads, head_size = keys.shape[1], keys.shape[3]
    query_heads = out.shape[1] // head_size
    x = np.empty_like(h)
    projected = np.empty((rows, len(qkv)), np.float32)
    mixed = np.zeros((rows, out.shape[1]), np.float32)  # rows without a token stay zero
    both = np.empty((rows, 2 * inner), np.float32)
    gated = np.empty((rows, inner), np.float32)
    normalize(h, ln_1, epsilon, x)
    fused_linear_loop(x, qkv, qkv_scale, qkv_bias, no, no, projected)
    by_head = projected[:tokens].reshape(tokens, -1, head_size)
    queries = by_head[:, :query_heads]
    new_keys = by_head[:, query_heads : query_heads + key_heads]
    if len(q_norm):
        for r in range(tokens):
            normalize(queries[r], q_norm, epsilon, queries[r])
            normalize(new_keys[r], k_norm, epsilon, new_keys[r])
    scale, one = np.float32(1 / math.sqrt(head_size)), np.float32(1)
    rotate(queries, cos, sin, scale, scale, queries)
    rotate(new_keys, cos, sin, one, one, new_keys)
    attend(projected, keys, values, slots, lows, places, mixed)
    fused_linear_loop(mixed, out, out_scale, out_bias, no, yes, h)
    normalize(h, ln_2, epsilon, x)
    fused_linear_loop(x, gate_up, gate_up_scale, gate_up_bias, no, no, both)
    for r in range(rows):
        multiply_by_silu(both[r, :inner], both[r, inner:], gated[r])
    fused_linear_loop(gated, down, down_scale, down_bias, no, yes, h)
