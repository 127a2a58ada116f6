"""The report on this machine: what it is, how fast it is, and what chattune makes of it."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from chattune.base import SMOLLM2, STARTER, find_base
from chattune.cost import TRAINING_SHARE, gpt_layer_weights, training_operations
from chattune.device import Device, find_device, host_memory, matmul_rate, read_rate
from chattune.recipe import load_recipe, shipped

# Layers, weights in the layers' matrices, and weights in the output layer, of the recipes' bases
# that need not be on this machine.
_SHAPES = {
    "EleutherAI/gpt-neo-125m": (12, gpt_layer_weights(12, 768), 50257 * 768),
    "EleutherAI/gpt-neo-1.3B": (24, gpt_layer_weights(24, 2048), 50257 * 2048),
    SMOLLM2: (30, 106_168_320, 49152 * 576),
}
_SUPERVISED_SHARE = 0.5  # of the tokens, about as in Guanaco
# Decoding in int8 as measured in docs/performance.md: the share of the reading rate that the
# weights reach, and the seconds that each layer takes besides.
_READING_SHARE, _LAYER_SECONDS = 0.75, 90e-6
_BYTES_PER_WEIGHT = 1

_PACKAGES = ("chattune", "torch", "transformers", "trl", "peft", "datasets", "gradio")


def examine() -> dict[str, Any]:
    """Return facts about this machine as plain values, with rates measured in about a second."""
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
        "training_dtype_because": device.bf16_reason,
        "matrix_gflops": {name: round(rate / 1e9) for name, rate in rates.items()},
        "read_gb_per_s": round(reading / 1e9, 1),
        "expected_tokens_per_s": {
            name: _expected_rates(load_recipe(name).base, device, max(rates.values()), reading)
            for name in shipped()
        },
        "memory_gb": round(host_memory() / 1e9, 1),
        "device_memory_gb": round(device.memory / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "hub": _hub_state(),
    }


def _expected_rates(base: str, device: Device, flop_per_s: float, bytes_per_s: float) -> str:
    """Return, as text, the tokens per second that training and, on a CPU, one reply may reach."""
    layers, weights, head = _shape_of(base)
    per_token = training_operations(weights, head, tokens=1, supervised=_SUPERVISED_SHARE)
    training = f"training {flop_per_s * TRAINING_SHARE[device.bf16] / per_token:,.0f}"
    if device.kind != "cpu":
        return training
    reading = (weights + head) * _BYTES_PER_WEIGHT / (bytes_per_s * _READING_SHARE)
    return f"{training} and replying {1 / (reading + layers * _LAYER_SECONDS):,.0f}"


def _shape_of(base: str) -> tuple[int, int, int]:
    """Return a shipped recipe's base as an entry of _SHAPES."""
    if base != STARTER:
        return _SHAPES[base]
    config = find_base(base).config
    layers, width = config["num_layers"], config["hidden_size"]
    return layers, gpt_layer_weights(layers, width), config["vocab_size"] * width


def _hub_state() -> str:
    """Return, as text, whether the Hub can be reached; it is asked unless it is switched off."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "switched off (HF_HUB_OFFLINE)"
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    from huggingface_hub import constants

    try:
        with urlopen(f"{constants.ENDPOINT}/api/models?limit=1", timeout=5):
            return "reachable"
    except HTTPError:  # the Hub answered, if with an error
        return "reachable"
    except (OSError, HTTPException, ValueError) as error:  # ValueError: HF_ENDPOINT is no URL
        reason = getattr(error, "reason", error)
        return f"not reachable ({reason}); local files and the starter work without it"
