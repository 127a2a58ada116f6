"""The description of the machine, the choice of bf16, and the measured rates."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from chattune import device as devices
from chattune.device import cpu_quota, find_device, host_memory, matmul_rate, read_rate


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_this_machine_is_described() -> None:
    device = find_device()
    assert device.kind in ("cuda", "mps", "cpu")
    assert device.name
    assert device.threads >= 1
    assert device.memory > 1 << 28
    assert device.bf16_reason
    assert device.torch.type == device.kind


def test_without_an_accelerator_the_cpu_is_used(cpu_only: None) -> None:
    device = find_device()
    assert device.kind == "cpu"
    assert device.memory == host_memory()
    assert device.threads == torch.get_num_threads()


@pytest.mark.parametrize(
    ("amx", "avx512", "bf16", "reason"),
    [
        (True, True, True, "AMX"),
        (False, True, True, "AVX512"),
        (False, False, False, "no bf16 instructions"),
    ],
)
def test_a_cpu_computes_bf16_only_with_instructions_for_it(
    cpu_only: None,
    monkeypatch: pytest.MonkeyPatch,
    amx: bool,
    avx512: bool,
    bf16: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(devices, "_bf16_gain", lambda: 4.0)
    device = find_device()
    assert device.bf16 is bf16
    assert device.base_dtype() == (torch.bfloat16 if bf16 else torch.float32)
    assert reason in device.bf16_reason


def test_bf16_that_is_no_faster_is_not_used(
    cpu_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(devices, "_bf16_gain", lambda: 1.1)
    device = find_device()
    assert device.bf16 is False
    assert "1.1 times" in device.bf16_reason


def test_an_older_torch_without_the_probes_computes_in_fp32(
    cpu_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert find_device().bf16 is False


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_computes_bf16_where_it_does_so_natively(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    card = SimpleNamespace(name="A card", total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation
    )
    device = find_device()
    assert (device.kind, device.name, device.memory) == ("cuda", "A card", 8 << 30)
    assert device.bf16 is native
    assert "bf16" in device.bf16_reason


def test_apples_gpu_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = find_device()
    assert (device.kind, device.bf16, device.memory) == ("mps", False, host_memory())


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_cpu_quota_is_read(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    """The files are those of the second version of cgroups, and of the first."""

    def read_text(path: Path) -> str:
        name = str(path).removeprefix("/sys/fs/cgroup/")
        if name not in files:
            raise FileNotFoundError(path)
        return files[name]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert cpu_quota() == quota


@pytest.mark.parametrize(
    ("quota", "chosen", "threads"), [(1.5, None, 2), (0.5, None, 1), (None, None, 8), (1.5, "8", 8)]
)
def test_no_more_threads_are_used_than_the_quota_allows(
    cpu_only: None,
    monkeypatch: pytest.MonkeyPatch,
    quota: float | None,
    chosen: str | None,
    threads: int,
) -> None:
    """A number that the user has chosen stays."""
    used = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr(devices, "cpu_quota", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert find_device().threads == threads


@pytest.mark.parametrize(
    ("written", "memory"),
    [("1073741824\n", 1 << 30), ("max\n", None), ("9223372036854771712\n", None)],
)
def test_a_containers_limit_is_the_memory(
    monkeypatch: pytest.MonkeyPatch, written: str, memory: int | None
) -> None:
    read = Path.read_text

    def read_text(path: Path, *args: str) -> str:
        return written if str(path).startswith("/sys/fs/cgroup") else read(path, *args)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert host_memory() == (memory or psutil.virtual_memory().total)


def test_matrix_products_are_measured() -> None:
    assert matmul_rate(bf16=False, shape=(64, 32, 16), seconds=0.01) > 1e6
    assert matmul_rate(bf16=True, shape=(64, 64, 64), seconds=0.01) > 1e5


def test_reading_is_measured() -> None:
    assert read_rate(megabytes=1, seconds=0.01) > 1e7


def test_a_disturbed_measurement_does_not_change_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process slowed the first three measurements of bf16 down."""
    disturbed = iter([1e10, 2e10, 3e10])

    def rate(bf16: bool, *_: object) -> float:
        return next(disturbed, 4e11) if bf16 else 1e11

    monkeypatch.setattr(devices, "matmul_rate", rate)
    devices._bf16_gain.cache_clear()
    assert devices._bf16_gain() == 4.0
    devices._bf16_gain.cache_clear()
