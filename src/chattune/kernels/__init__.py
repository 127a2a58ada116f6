"""Operations that every model family uses.

Some are loops that Numba compiles for a CPU (`jit`, `elementwise`, `dot_products`, `products`,
`cached_attention`); the others are PyTorch functions built on such loops or on PyTorch's own
operations (`gelu`, `dropout`, `packed_attention`). The second kind imports the first only on the
path that needs it, so a model on a GPU runs without Numba.
"""

import functools
import importlib
import logging

log = logging.getLogger(__name__)


@functools.cache
def numba_problem() -> str | None:
    """Return why Numba cannot be used in this process, or None if it can.

    The answer is found once, by importing it; a problem is then logged once. Callers take PyTorch's
    operations instead.
    """
    try:
        importlib.import_module("chattune.kernels.jit")
    except Exception as error:  # not installed, a missing LLVM library, a NumPy it does not know
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("Numba cannot be used (%s); PyTorch's slower operations are used", problem)
        return problem
    return None
