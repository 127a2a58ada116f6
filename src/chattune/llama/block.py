"""One transformer block of Llama's family for one new token in each of several replies, compiled.

PyTorch needs some thirty operations per layer for this, and calling them takes longer than reading
a small model's weights. Here it is one call.
"""

import math

import numpy as np

from chattune.kernels.cached_attention import attend
from chattune.kernels.elementwise import rms_norm, rotate, swiglu
from chattune.kernels.jit import compiled
from chattune.kernels.products import fused_linear_loop


@compiled()
def transformer_block(
    h, ln_1, qkv, qkv_scale, qkv_bias, q_norm, k_norm, out, out_scale, out_bias,
    ln_2, gate_up, gate_up_scale, gate_up_bias, down, down_scale, down_bias,
    keys, values, slots, lows, places, cos, sin, epsilon,
):  # fmt: skip
    """Compute one block in place: h (padded rows, width) is the residual stream before and after.

    The first len(slots) rows of h are tokens; padded() says why there may be more. For `keys`,
    `values`, `slots`, `lows` and `places` see attend(). `cos` and `sin` (tokens, head size / 2) are
    those of each token's rotary angles. `q_norm` and `k_norm` are the norms of each head's queries
    and keys, or are empty. The other arguments are the block's weights.
    """
    tokens, rows = len(slots), len(h)
    no, yes = np.int64(0), np.int64(1)  # of one type for all calls: see fused_linear_loop()
    key_heads, head_size = keys.shape[1], keys.shape[3]
    query_heads = len(qkv) // head_size - 2 * key_heads
    projected = np.empty((rows, len(qkv)), np.float32)
    mixed = np.zeros((rows, query_heads * head_size), np.float32)  # other rows stay zero
    both = np.empty((rows, len(gate_up)), np.float32)
    x = rms_norm(h, ln_1, epsilon)
    fused_linear_loop(x, qkv, qkv_scale, qkv_bias, no, no, projected)
    in_heads = projected[:tokens].reshape(tokens, -1, head_size)
    queries = in_heads[:, :query_heads]
    new_keys = in_heads[:, query_heads : query_heads + key_heads]
    rotate(queries, q_norm, epsilon, cos, sin, np.float32(1 / math.sqrt(head_size)))
    rotate(new_keys, k_norm, epsilon, cos, sin, np.float32(1))
    attend(projected, keys, values, slots, lows, places, mixed)
    fused_linear_loop(mixed, out, out_scale, out_bias, no, yes, h)
    x = rms_norm(h, ln_2, epsilon)
    fused_linear_loop(x, gate_up, gate_up_scale, gate_up_bias, no, no, both)
    fused_linear_loop(swiglu(both), down, down_scale, down_bias, no, yes, h)
