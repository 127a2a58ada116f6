"""The machine that chattune runs on: its device, dtype and memory, and its measured rates."""

import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import dtype

_WORTHWHILE_GAIN = 1.3  # below it, the precision of fp32 is worth more than the time


@dataclass(frozen=True)
class Device:
    """The device that a model runs on.

    `kind` is "cuda", "mps" or "cpu". `bf16` says whether the device multiplies bf16 fast: then the
    frozen base is kept in bf16 while an adapter is trained, and adapter and optimiser in fp32;
    `bf16_reason` explains it to the user. `memory` is in bytes, of the accelerator if there is one
    and else of the machine.
    """

    kind: str
    name: str
    bf16: bool
    threads: int
    memory: int
    bf16_reason: str = ""

    @property
    def torch(self) -> "torch.device":
        """The device as a torch.device."""
        import torch

        return torch.device(self.kind)

    def base_dtype(self) -> "dtype":
        """Return the dtype of a frozen base's weights in training."""
        import torch

        return torch.bfloat16 if self.bf16 else torch.float32


def find_device() -> Device:
    """Return the device to use: a CUDA GPU, else Apple's GPU, else the CPU."""
    import torch

    kind, threads = _kind(), _limit_threads()
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        reason = "the GPU multiplies bf16 natively" if bf16 else "the GPU has no bf16 units"
        return Device(kind, properties.name, bf16, threads, properties.total_memory, reason)
    if kind == "mps":
        reason = "bf16 on Apple's GPU has not been verified"
        return Device(kind, "Apple GPU", False, threads, host_memory(), reason)
    bf16, reason = _cpu_bf16()
    return Device(kind, _cpu_name(), bf16, threads, host_memory(), reason)


def _limit_threads() -> int:
    """Let PyTorch use no more threads than the container's CPU quota allows; return their number.

    PyTorch counts the processors of the machine. Threads beyond the quota would wait for each other
    while the container is throttled. A number that the user has set stays.
    """
    import torch

    quota = cpu_quota()
    if quota is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), max(1, math.ceil(quota))))
    return int(torch.get_num_threads())


def cpu_quota() -> float | None:
    """Return the number of processors that a container's cgroup allows, or None without a limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # cgroup 2, 1
        try:
            texts = [Path("/sys/fs/cgroup", file).read_text() for file in files]
            quota, period = map(int, " ".join(texts).split())
        except (OSError, ValueError):  # another system than Linux, or the text "max"
            continue
        if quota > 0:  # -1 is no limit
            return quota / period
    return None


def host_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's or its container's."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # another system than Linux, or the text "max"
            continue
    return total


def matmul_rate(
    bf16: bool, shape: tuple[int, int, int] | None = None, seconds: float = 0.3
) -> float:
    """Measure the rate of matrix products on this machine's device, in FLOP/s.

    `shape` is (rows, inner, columns). By default all three are 1024, and 8192 on a CUDA GPU, where
    a small product ends before the next one is launched.
    """
    import torch

    kind, dtype = _kind(), torch.bfloat16 if bf16 else torch.float32
    rows, inner, columns = shape or ((8192 if kind == "cuda" else 1024),) * 3
    a = torch.randn(rows, inner, device=kind, dtype=dtype)
    b = torch.randn(inner, columns, device=kind, dtype=dtype)
    out = torch.empty(rows, columns, device=kind, dtype=dtype)
    return 2 * rows * inner * columns / _seconds_per_call(lambda: torch.mm(a, b, out=out), seconds)


def read_rate(megabytes: int = 256, seconds: float = 0.3) -> float:
    """Measure the rate of reading memory, of a CUDA GPU or else of the machine, in bytes/s.

    This rate bounds decoding on a CPU. `megabytes` must be far more than the caches hold.
    """
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    numbers = torch.ones(megabytes << 17, dtype=torch.int64, device=kind)
    return numbers.nbytes / _seconds_per_call(numbers.sum, seconds)


def synchronize() -> None:
    """Wait until the accelerator, if there is one, has finished its work."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _seconds_per_call(call: Callable[[], object], seconds: float) -> float:
    """Return the mean time of a call, measured for about `seconds` after a warm-up."""
    call()
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    # A GPU is waited for after several calls only, because each wait leaves it idle for a moment.
    calls_per_wait = max(1, int(seconds / 20 / (time.perf_counter() - started)))
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for _ in range(calls_per_wait):
            call()
        synchronize()
        calls += calls_per_wait
    return elapsed / calls


def _kind() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _cpu_bf16() -> tuple[bool, str]:
    """Return whether to use bf16 on the CPU, and why: it must be measurably faster than fp32.

    Without instructions for it, PyTorch emulates bf16, which is a hundred times slower than fp32.
    """
    import torch

    for probe, name in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512")):
        is_supported = getattr(torch.cpu, probe, None)  # private, so it may disappear
        if is_supported is not None and is_supported():
            gain = _bf16_gain()
            reason = f"with {name} the CPU multiplies bf16 {gain:.1f} times as fast as fp32"
            return gain > _WORTHWHILE_GAIN, reason
    return False, "the CPU has no bf16 instructions"


@functools.cache
def _bf16_gain() -> float:
    """Measure how many times as fast as fp32 this CPU multiplies bf16.

    The best of several short measurements in turn counts, because one alone may be disturbed by
    another process, and a wrong dtype makes a whole run slow.
    """
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(5):
        for bf16 in rates:
            rates[bf16].append(matmul_rate(bf16, (512, 512, 512), 0.02))
    return max(rates[True]) / max(rates[False])


def _cpu_name() -> str:
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # another system than Linux
        pass
    return platform.processor() or platform.machine() or f"{os.cpu_count()} cores"
