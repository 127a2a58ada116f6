"""Compiled loops: kept on disk where possible, run on PyTorch's threads, called from several."""

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PRODUCT = """
import threading
import torch
from chattune.kernels import products
def product(seed=0):
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
    weight = torch.arange(96.0 * 64).sin().view(96, 64).bfloat16()
    ours = products.fused_linear(x, weight, torch.ones(96), torch.zeros(96))
    return float((ours - x @ weight.float().T).abs().max()) < 1e-4
"""


UNKEPT = "compiled code is not kept, so that every start compiles it again: "


def python(code: str, **env: str) -> tuple[str, str]:
    """Run code in a fresh interpreter and return its standard output and error."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def run(code: str, **env: str) -> str:
    return python(PRODUCT + code, **env)[0]


def test_without_a_writable_cache_code_is_compiled_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "cache"
    out, err = python(
        PRODUCT + "from chattune.kernels import cached_attention\n"
        "print(product(), type(products.fused_linear_loop._cache).__name__)",
        NUMBA_CACHE_DIR=str(cache),
    )
    assert out == "True NullCache"
    assert err == f"{UNKEPT}[Errno 20] Not a directory: '{cache / 'compiled'}'\n"


LOOP = """
from chattune.kernels.jit import compiled
@compiled()
def one():
    return 1
"""


class Payload:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, created: Path) -> None:
        self.created = created

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.created), "w")


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Callable[[], tuple[str, str]], Path]:
    """Plant pickles in a cache that holds compiled code.

    Returns the cache's folder, a function that compiles the same code again, and the file that the
    pickles create when they are loaded.
    """
    (tmp_path / "loop.py").write_text(LOOP)
    variables = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    again = functools.partial(python, "import loop; print(loop.one())", **variables)
    assert again() == ("1", "")
    folder, loaded = tmp_path / "compiled", tmp_path / "loaded"
    assert folder.stat().st_mode & 0o777 == 0o700
    (index,) = folder.rglob("*.nbi")
    index.write_bytes(pickle.dumps(Payload(loaded)))
    return folder, again, loaded


def test_compiled_code_that_others_may_have_written_is_not_loaded(planted) -> None:
    folder, again, loaded = planted
    for mode in (0o770, 0o707):
        folder.chmod(mode)
        problem = f"other users can write to {folder}; allow only yourself with chmod 700"
        assert again() == ("1", f"{UNKEPT}{problem}\n")
        assert not loaded.exists()
    folder.chmod(0o755)  # others can read, which is harmless
    assert again() == ("1", "")
    assert loaded.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_compiled_code_of_another_user_is_not_loaded(planted) -> None:
    folder, again, loaded = planted
    os.chown(folder, 65534, 65534)
    assert again() == ("1", f"{UNKEPT}{folder} belongs to another user\n")
    assert not loaded.exists()


def test_damaged_cache_files_are_replaced(tmp_path: Path) -> None:
    """It depends on a private attribute of Numba, and would fail if that changed."""
    kept = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert run("print(product())", **kept) == "True"
    files = [p for p in tmp_path.rglob("*") if p.suffix in (".nbi", ".nbc")]
    assert len(files) > 4
    for path in files:
        path.write_bytes(b"\x80")
    assert run("print(product())", **kept) == "True"


def test_pytorch_keeps_its_number_of_threads() -> None:
    code = "print(torch.get_num_threads(), product(), torch.get_num_threads())"
    assert run(code, OMP_NUM_THREADS="1") == "1 True 1"


def test_two_threads_may_ask_at_once_whatever_the_layer() -> None:
    """Numba's workqueue layer, which is always there, ends a process that enters it twice."""
    code = """
good = []
ask = lambda seed: good.extend(product(seed) for _ in range(50))
threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import numba
print(all(good), len(good), numba.threading_layer())
"""
    said = run(code, NUMBA_THREADING_LAYER="workqueue", OMP_NUM_THREADS="2")
    assert said == "True 100 workqueue"
