"""Compiled loops: kept on disk where possible, run on PyTorch's threads, called from several."""

import os
import subprocess
import sys
from pathlib import Path

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


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRODUCT + code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_writable_cache_code_is_compiled_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = run(
        "print(product(), type(products.fused_linear_loop._cache).__name__)",
        NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache"),
    )
    assert said == "True NullCache"


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
