"""examine(): what this machine is, and what chattune makes of it."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from chattune.base import STARTER, find_base
from chattune.device import (
    TRAINING_SHARE,
    Device,
    find_device,
    host_memory,
    matmul_rate,
    read_rate,
)
from chattune.recipe import load_recipe, shipped

# Layers, hidden width and vocabulary of the study's bases, which need not be on this machine.
_SHAPES = {
    "EleutherAI/gpt-neo-125m": (12, 768, 50257),
    "EleutherAI/gpt-neo-1.3B": (24, 2048, 50257),
}
_SUPERVISED = 0.5  # share of the tokens that the loss covers: about Guanaco's
# What decoding in int8 reached (docs/performance.md): a share of the reading rate, and a time for a
# layer.
_READING_SHARE, _LAYER_S = 0.75, 90e-6

_PACKAGES = ("chattune", "torch", "transformers", "trl", "peft", "datasets", "gradio")


def examine() -> dict[str, Any]:
    """Facts with plain values: device, matrix rates (measured), memory, disk, versions, Hub."""
    device = find_device()
    rates = {"fp32": matmul_rate(bf16=False)}
    if device.bf16:
        rates["bf16"] = matmul_rate(bf16=True)
    reading = read_rate()
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": device.kind,
        "device_name": device.name,
        "threads": device.threads,
        "training_dtype": "base in bf16" if device.bf16 else "fp32",
        "training_dtype_because": device.reasons["bf16"],
        "matrix_gflops": {name: round(rate / 1e9) for name, rate in rates.items()},
        "read_gb_per_s": round(reading / 1e9, 1),
        "expected_tokens_per_s": _expected(device, max(rates.values()), reading),
        "memory_gb": round(host_memory() / 1e9, 1),
        "device_memory_gb": round(device.memory / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "hub": _hub(),
    }


def _expected(device: Device, flop_per_s: float, bytes_per_s: float) -> dict[str, str]:
    """For each shipped recipe what training and one reply may reach here, from the ceilings."""
    expected = {}
    for name in shipped():
        base = load_recipe(name).base
        if base == STARTER:
            config = find_base(base).config
            layers, hidden, vocabulary = (
                config[k] for k in ("num_layers", "hidden_size", "vocab_size")
            )
        else:
            layers, hidden, vocabulary = _SHAPES[base]
        blocks, head = 12 * layers * hidden**2, vocabulary * hidden
        training = flop_per_s * TRAINING_SHARE[device.bf16] / (4 * (blocks + _SUPERVISED * head))
        # A byte a weight.
        replying = 1 / ((blocks + head) / (bytes_per_s * _READING_SHARE) + layers * _LAYER_S)
        if device.kind != "cpu":
            expected[name] = f"training {training:,.0f}"
        else:
            expected[name] = f"training {training:,.0f} and replying {replying:,.0f}"
    return expected


def _hub() -> str:
    """Whether the Hub answers; models and data come from there unless they are local."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "switched off (HF_HUB_OFFLINE)"
    from urllib.error import HTTPError
    from urllib.request import urlopen

    from huggingface_hub import constants

    try:
        with urlopen(f"{constants.ENDPOINT}/api/models?limit=1", timeout=5):
            return "reachable"
    except HTTPError:
        return "reachable"  # it answered
    except OSError as error:
        return f"not reachable ({getattr(error, 'reason', error)}); local files and starter work"
