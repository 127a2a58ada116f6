"""One transformer block of GPT-Neo for one new token in each of several replies, compiled.

PyTorch needs some twenty operations per layer for this, and calling them takes longer than reading
a small model's weights. Here it is one call.
"""

import numpy as np

from chattune.kernels.cached_attention import attend, dot
from chattune.kernels.elementwise import layer_norm
from chattune.kernels.jit import compiled
from chattune.kernels.products import multiply_arrays


@compiled()
def block(
    h, ln_1, ln_1_bias, qkv, qkv_scale, qkv_bias, out, out_scale, out_bias,
    ln_2, ln_2_bias, fc, fc_scale, fc_bias, proj, proj_scale, proj_bias,
    keys, values, slots, lows, ends, epsilon,
):  # fmt: skip
    """Replace h (padded rows, width), the residual stream before a block, by that after it.

    The first len(slots) rows are tokens; for `keys`, `values`, `slots`, `lows` and `ends` see
    attend(), for the number of rows padded(). The other arguments are the block's weights in order.
    """
    rows, width = h.shape
    no, yes = np.int64(0), np.int64(1)  # of one type for all calls: see multiply_arrays()
    projected = np.empty((rows, 3 * width), np.float32)
    mixed = np.zeros((rows, width), np.float32)  # rows without a token stay zero
    inner = np.empty((rows, len(fc)), np.float32)
    x = layer_norm(h, ln_1, ln_1_bias, epsilon)
    multiply_arrays(x, qkv, qkv_scale, qkv_bias, no, no, projected)
    attend(projected, keys, values, slots, lows, ends, mixed)
    multiply_arrays(mixed, out, out_scale, out_bias, no, yes, h)
    x = layer_norm(h, ln_2, ln_2_bias, epsilon)
    multiply_arrays(x, fc, fc_scale, fc_bias, yes, no, inner)
    multiply_arrays(inner, proj, proj_scale, proj_bias, no, yes, h)


@compiled()
def add_dot_products(x, vector, out):
    """Add to every number in row r of `out` (rows, m) the dot product of x[r] with `vector`."""
    for r in range(len(x)):
        product = dot(x[r], vector)
        for j in range(out.shape[1]):
            out[r, j] += product
