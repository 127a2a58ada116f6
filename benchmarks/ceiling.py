"""What this machine can do at most: matrix products and reading memory.

python benchmarks/ceiling.py [--json]
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Rows, inner and columns of GPT-Neo's products, the 125M's and the 1.3B's.
_SHAPES = (
    (1024, 768, 3072),
    (1024, 3072, 768),
    (1024, 2048, 2048),
    (1024, 2048, 8192),
    (1024, 8192, 2048),
)


def matrix_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """FLOP/s of the best of a few shapes that a GPT-Neo step is made of."""
    best = 0.0
    for rows, inner, columns in _SHAPES:
        scale = 8 if DEVICE == "cuda" else 1
        a = torch.randn(scale * rows, inner, device=DEVICE, dtype=dtype)
        b = torch.randn(inner, columns, device=DEVICE, dtype=dtype)
        out = torch.empty(scale * rows, columns, device=DEVICE, dtype=dtype)
        each = seconds_a_call(
            lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds / len(_SHAPES)
        )
        best = max(best, 2 * scale * rows * inner * columns / each)
    return best


def read_rate(seconds: float = 1.0) -> float:
    """Bytes/s of summing a gigabyte, far more than any cache holds."""
    big = torch.ones(1 << 27, dtype=torch.int64, device=DEVICE)
    return big.nbytes / seconds_a_call(big.sum, seconds)


def seconds_a_call(call: Callable[[], object], seconds: float) -> float:
    """Mean time of a call, after a warm-up."""
    call()
    wait()
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        call()
        done += 1
        if DEVICE == "cpu" or done % 50 == 0:
            wait()
    wait()
    return (time.perf_counter() - started) / done if DEVICE == "cuda" else spent / done


def wait() -> None:
    """Until the GPU has done what it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure() -> dict[str, float]:
    """GFLOP/s in fp32 and bf16, and GB/s of reading."""
    return {
        "fp32_gflops": round(matrix_rate(torch.float32) / 1e9, 1),
        "bf16_gflops": round(matrix_rate(torch.bfloat16) / 1e9, 1),
        "read_gb_per_s": round(read_rate() / 1e9, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    found = measure()
    if parser.parse_args().json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:16} {value:10.1f}")
