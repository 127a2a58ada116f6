"""examine(): what this machine is, and what chattune makes of it."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from chattune.device import find_device, host_memory, matmul_rate

_PACKAGES = ("chattune", "torch", "transformers", "trl", "peft", "datasets", "gradio")


def examine() -> dict[str, Any]:
    """Facts with plain values: device, matrix rates (measured), memory, disk, versions, Hub."""
    device = find_device()
    rates = {"fp32": matmul_rate(bf16=False)}
    if device.bf16:
        rates["bf16"] = matmul_rate(bf16=True)
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": device.kind,
        "device_name": device.name,
        "threads": device.threads,
        "training_dtype": "bf16 autocast" if device.bf16 else "fp32",
        "training_dtype_because": device.reasons["bf16"],
        "matrix_gflops": {name: round(rate / 1e9) for name, rate in rates.items()},
        "memory_gb": round(host_memory() / 1e9, 1),
        "device_memory_gb": round(device.memory / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "hub": _hub(),
    }


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
