"""A run that is killed at a random moment and resumed ends with the same adapter, byte for byte.

The run has dropout and a held-out set. It is killed with SIGKILL at some moment between the
creation of its folder and its end, and the same command is given again with `--resume`. The suite
tries three moments; more are tried by

    CHATTUNE_KILLS=10 python -m pytest -n0 tests/faults
"""

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from chattune.run import Run
from conftest import TALK, write_talk

_MOMENTS = int(os.environ.get("CHATTUNE_KILLS", "3"))


@dataclass(frozen=True)
class Undisturbed:
    """A run that was never killed: its command, adapter, and seconds after its folder was made."""

    command: list[str]
    adapter: bytes
    seconds: float


def start(command: list[str], folder: Path, *more: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([*command, "--output", str(folder), *more], stderr=subprocess.PIPE)


def wait_for_folder(process: "subprocess.Popen[bytes]", folder: Path) -> float:
    """Wait until a run can be resumed, and return the time."""
    while not (folder / "recipe.yaml").exists():
        assert process.poll() is None
        time.sleep(0.005)
    return time.monotonic()


def adapter(folder: Path) -> bytes:
    return (Run.open(folder).folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    pairs = [(f"{q} ({i})", a) for i in range(8) for q, a in TALK]
    data = write_talk(folder / "talk.jsonl", pairs)
    settings = [
        "data.max_length=64", "data.validation=0.25", "lora.dropout=0.1", "training.steps=60",
        "training.batch_size=4", "training.accumulation=1", "training.evaluate_every=3",
    ]  # fmt: skip
    command = [
        *(sys.executable, "-m", "chattune.cli", "tune", "starter"),
        *("--base", str(tiny_base), "--data", str(data)),
        *(word for setting in settings for word in ("--set", setting)),
    ]
    with start(command, folder / "run") as process:
        began = wait_for_folder(process, folder / "run")
        _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return Undisturbed(command, adapter(folder / "run"), time.monotonic() - began)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(_MOMENTS))
def test_a_killed_run_is_resumed_to_the_same_adapter(
    moment: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with start(undisturbed.command, folder) as process:
        wait_for_folder(process, folder)
        time.sleep(random.Random(moment).uniform(0, undisturbed.seconds))
        process.kill()
    with start(undisturbed.command, folder, "--resume") as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert adapter(folder) == undisturbed.adapter
    assert [f.name for f in folder.iterdir() if f.name.startswith(".")] == []
