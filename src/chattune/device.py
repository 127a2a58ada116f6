"""What this machine is: device, dtype, threads, memory, and why each was chosen."""

import functools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import dtype

# Of matmul_rate() that a training step on a CPU reaches, without and with bf16.
TRAINING_SHARE = {False: 0.75, True: 0.55}
_CLEARLY = 1.3  # below it, fp32's exactness is worth more


@dataclass(frozen=True)
class Device:
    """Where a model runs.

    `bf16` says whether it multiplies bf16 fast; the frozen base is then kept in bf16 while an
    adapter is trained, adapter and optimiser in fp32. `memory` is in bytes: of the accelerator,
    or else of the machine.
    """

    kind: str
    name: str
    bf16: bool
    threads: int
    memory: int
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def torch(self) -> "torch.device":
        """The torch device."""
        import torch

        return torch.device(self.kind)

    def base_dtype(self) -> "dtype":
        """Of a frozen base's weights in training."""
        import torch

        return torch.bfloat16 if self.bf16 else torch.float32


def find_device() -> Device:
    """CUDA, Apple MPS or the CPU, whichever is there, in that order."""
    import torch

    threads = torch.get_num_threads()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        why = "the GPU multiplies bf16 natively" if bf16 else "the GPU has no bf16 units"
        return Device(
            "cuda", properties.name, bf16, threads, properties.total_memory, {"bf16": why}
        )
    if torch.backends.mps.is_available():
        why = "fp32 on MPS: its bf16 autocast is not verified here"
        return Device("mps", "Apple GPU", False, threads, host_memory(), {"bf16": why})
    bf16, why = _cpu_bf16()
    return Device("cpu", _cpu_name(), bf16, threads, host_memory(), {"bf16": why})


def host_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its container's limit."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # not Linux, or "max"
            continue
    return total


def matmul_rate(bf16: bool, size: int = 1024, seconds: float = 0.3) -> float:
    """Multiply-add rate of this machine's matrix products, in FLOP/s (measured, not looked up)."""
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "mps" if kind == "cpu" and torch.backends.mps.is_available() else kind
    dtype = torch.bfloat16 if bf16 else torch.float32
    if kind == "cuda":
        size *= 8  # a small one is over before the next is asked for
    a, b = (torch.randn(size, size, device=kind, dtype=dtype) for _ in range(2))
    (a @ b).sum().item()
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        (a @ b).sum().item()
        done += 1
    return done * 2 * size**3 / spent


def read_rate(megabytes: int = 256, seconds: float = 0.3) -> float:
    """Bytes/s at which this machine reads memory (measured): what bounds decoding on a CPU."""
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    big = torch.ones(megabytes << 17, dtype=torch.int64, device=kind)
    big.sum().item()
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        big.sum().item()
        done += 1
    return done * big.nbytes / spent


def _cpu_bf16() -> tuple[bool, str]:
    """Only where it is clearly faster: emulated bf16 is slower than fp32 by a hundred times."""
    import torch

    for probe, name in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512")):
        supported = getattr(torch.cpu, probe, None)
        if supported is None or not supported():
            continue
        why = f"with {name} the CPU multiplies bf16 {_bf16_gain():.1f} times as fast as fp32"
        return _bf16_gain() > _CLEARLY, why
    return False, "the CPU has no bf16 instructions"


@functools.cache
def _bf16_gain() -> float:
    return matmul_rate(True, 512, 0.05) / matmul_rate(False, 512, 0.05)


def _cpu_name() -> str:
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine() or f"{os.cpu_count()} cores"
