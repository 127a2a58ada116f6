"""Compile loops for this machine with Numba, keep the result on disk, and run it.

Where PyTorch has no fused operation for a CPU, one compiled loop reads memory once instead of once
per operation. Numba needs no compiler on the user's machine. Arrays of bf16 numbers are uint16
here, which holds their bits; arithmetic is in fp32, or in int32 where the weights are int8.
"""

import functools
import hashlib
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
import torch
from numpy.typing import NDArray

from chattune.errors import OutputError
from chattune.folders import cache_folder

log = logging.getLogger(__name__)

# Numba's portable threading layer (workqueue) ends the process when two threads enter it at once.
# A forked child must not call kernels: it may inherit the lock while it is held.
_RUNNING = threading.Lock()


def compiled(**options: Any) -> Any:
    """Return Numba's decorator with chattune's settings and, where possible, a cache on disk.

    Use `fastmath=True` only for functions that return a sum and write to no array. LLVM compiles a
    loop that writes both as vectors and number by number, and the compiled code chooses at each
    call by where the arrays lie in memory. Under fastmath the two versions round differently, so
    that the same inputs would not give the same bits again.
    """

    def decorate(function: Any) -> Any:
        # error_model "python" tests every divisor for zero, which prevents vector loops.
        settings = {"nogil": True, "error_model": "numpy"} | options
        folder = _cache_folder(function.__code__.co_filename)
        if folder is None:
            return numba.njit(**settings)(function)
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = folder  # Numba reads it when the decorator runs
        try:
            return _with_safe_cache(numba.njit(cache=True, **settings)(function))
        finally:
            numba.config.CACHE_DIR = before

    return decorate


@functools.cache
def _cache_folder(source: str) -> str | None:
    """Return a cache folder for the code in `source`, or None if compiled code is not kept.

    Numba compiles a function again when its own file changes, but not when a function that it calls
    in another file does. The folder is therefore named by a hash of `source` and of all files in
    this package, and compiled code may call only functions in those.
    """
    parent = _private_folder()
    if parent is None:
        return None
    code = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(source)):
        code.update(path.read_bytes())
    return str(parent / code.hexdigest()[:16])


@functools.cache
def _private_folder() -> Path | None:
    """Return the folder of all compiled code, or None, which is logged, if it cannot be used.

    Numba's files are pickles, and unpickling runs whatever code they name. They are therefore used
    only if nobody but this user can have written them.
    """
    try:
        folder = Path(numba.config.CACHE_DIR or cache_folder()) / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            status = folder.stat()
    except (OSError, OutputError) as error:
        problem = str(error)
    else:
        posix = os.name == "posix"  # Windows has neither
        if posix and status.st_uid != os.geteuid():
            problem = f"{folder} belongs to another user"
        elif posix and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            problem = f"other users can write to {folder}; allow only yourself with chmod 700"
        else:
            return folder
    log.warning("compiled code is not kept, so that every start compiles it again: %s", problem)
    return None


def _with_safe_cache(dispatcher: Any) -> Any:
    """Make a full disk or a damaged cache file cost a compilation instead of an exception.

    Numba has no setting for that; this function alone uses the private attribute `_cache`.
    """
    for name in ("load_overload", "save_overload"):
        setattr(dispatcher._cache, name, _none_on_error(getattr(dispatcher._cache, name)))
    return dispatcher


def _none_on_error(access: Any) -> Any:
    def attempt(*arguments: Any) -> Any:
        with suppress(Exception):  # unpickling a damaged file raises exceptions of many kinds
            return access(*arguments)

    return attempt


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a NumPy array over the tensor's memory; bf16 becomes uint16, the bits of its numbers.

    A tensor that is not contiguous is copied.
    """
    tensor = tensor.contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def run_kernel(kernel: Any, *arguments: Any) -> None:
    """Run a compiled function on as many threads as PyTorch uses; one function runs at a time."""
    threads = torch.get_num_threads()
    with _RUNNING:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        # Where both use the same OpenMP library, Numba's first start changes PyTorch's setting
        # (https://github.com/numba/numba/issues/9387).
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        kernel(*arguments)


def compute_elementwise(kernel: Any, inputs: Sequence[torch.Tensor], *scalars: int) -> torch.Tensor:
    """Return a new tensor, like the first of `inputs`, that a kernel fills element by element.

    The kernel takes the inputs and the result as flat arrays, then the scalars.
    """
    out = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
    arrays = (as_array(tensor.detach()).reshape(-1) for tensor in (*inputs, out))
    run_kernel(kernel, *arrays, *scalars)
    return out
