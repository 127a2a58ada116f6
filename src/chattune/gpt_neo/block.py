"""One transformer block of GPT-Neo for one new token in each of several replies, compiled.

PyTorch needs some twenty operations per layer for this, and calling them takes longer than reading
a small model's weights. Here it is one call.
"""

import numpy as np

from chattune.kernels.cached_attention import attend
from chattune.kernels.elementwise import layer_norm
from chattune.kernels.jit import compiled
from chattune.kernels.products import fused_linear_loop


@compiled()
def transformer_block(
    h, ln_1, ln_1_bias, qkv, qkv_scale, qkv_bias, out, out_scale, out_bias,
    ln_2, ln_2_bias, fc, fc_scale, fc_bias, proj, proj_scale, proj_bias,
    keys, values, slots, lows, places, epsilon,
):  # fmt: skip
    """Compute one block in place: h (padded rows, width) is the residual stream before and after.

    The first len(slots) rows of h are tokens; padded() says why there may be more. For `keys`,
    `values`, `slots`, `lows` and `places` see attend(). The other arguments are the block's
    weights.
    """
    rows, width = h.shape
    no, yes = np.int64(0), np.int64(1)  # of one type for all calls: see fused_linear_loop()
    projected = np.empty((rows, 3 * width), np.float32)
    mixed = np.zeros((rows, width), np.float32)  # rows without a token stay zero
    inner = np.empty((rows, len(fc)), np.float32)
    x = layer_norm(h, ln_1, ln_1_bias, epsilon)
    fused_linear_loop(x, qkv, qkv_scale, qkv_bias, no, no, projected)
    attend(projected, keys, values, slots, lows, places, mixed)
    fused_linear_loop(mixed, out, out_scale, out_bias, no, yes, h)
    x = layer_norm(h, ln_2, ln_2_bias, epsilon)
    fused_linear_loop(x, fc, fc_scale, fc_bias, yes, no, inner)
    fused_linear_loop(inner, proj, proj_scale, proj_bias, no, yes, h)
