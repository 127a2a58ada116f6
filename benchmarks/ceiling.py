"""The limits of this machine: the rates of matrix products and of reading memory.

python benchmarks/ceiling.py [--json]
"""

import argparse
import json

import torch

from chattune import device

# (rows, inner, columns) of matrix products in GPT-Neo's layers, the 125M's and the 1.3B's.
_SHAPES = (
    (1024, 768, 3072),
    (1024, 3072, 768),
    (1024, 2048, 2048),
    (1024, 2048, 8192),
    (1024, 8192, 2048),
)
_GPU_ROW_FACTOR = 8  # a GPU gets this many times the rows, because fewer do not keep it busy


def matrix_rate(bf16: bool, seconds: float = 1.0) -> float:
    """Return the FLOP/s of the fastest of a few shapes that a GPT-Neo step is made of."""
    factor = _GPU_ROW_FACTOR if torch.cuda.is_available() else 1
    return max(
        device.matmul_rate(bf16, (factor * rows, inner, columns), seconds / len(_SHAPES))
        for rows, inner, columns in _SHAPES
    )


def read_rate(seconds: float = 1.0) -> float:
    """Return the bytes/s of summing a gigabyte, far more than any cache holds."""
    return device.read_rate(1024, seconds)


def measure() -> dict[str, float]:
    """Return GFLOP/s in fp32 and bf16, and GB/s of reading."""
    return {
        "fp32_gflops": round(matrix_rate(bf16=False) / 1e9, 1),
        "bf16_gflops": round(matrix_rate(bf16=True) / 1e9, 1),
        "read_gb_per_s": round(read_rate() / 1e9, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rates = measure()
    if arguments.json:
        print(json.dumps(rates))
    else:
        for name, rate in rates.items():
            print(f"{name:16} {rate:10.1f}")
