"""Operations that model families share.

Some are loops that Numba compiles for a CPU (`jit`, `elementwise`, `dot_products`, `products`,
`cached_attention`, `row_loops`, `short_attention_loops`); the others are PyTorch functions
built on such loops or on PyTorch's own operations (`gelu`, `swiglu`, `rms_norm`, `rotary`,
`dropout`, `packed_attention`, `short_attention`). The second kind imports the first only on the
path that needs it, so a model on a GPU runs without Numba.
"""

import functools
import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@functools.cache
def numba_problem() -> str | None:
    """Return why loops cannot be compiled in this process, or None if they can.

    The answer is found once, by importing Numba, and a problem is logged once.
    """
    try:
        importlib.import_module("chattune.kernels.jit")
    except Exception as error:  # not installed, a missing LLVM library, a NumPy it does not know
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("Numba cannot be used (%s); PyTorch's slower operations are used", problem)
        return problem
    return None


def is_compiled_for(x: "torch.Tensor") -> bool:
    """Return whether compiled elementwise loops can compute with x: fp32 or bf16 on a CPU."""
    import torch

    suits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return suits and numba_problem() is None
