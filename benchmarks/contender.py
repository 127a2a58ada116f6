"""Run one contender of a benchmark in a process of its own, or beside a busy one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def measure(script: str, contender: str, **options: object) -> dict[str, Any]:
    """Run `script --contender NAME` with more options, and return the JSON of its last line.

    A fresh process has neither the memory nor the settings of the contenders before it. If it
    fails, the benchmark ends with the error.
    """
    arguments = [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.run(
        [sys.executable, script, "--contender", contender, *arguments],
        capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if process.returncode != 0:
        sys.exit(f"{contender} failed:\n{process.stderr[-3000:]}")
    measured: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return measured


@contextmanager
def busy_process(*, busy: bool) -> Iterator[None]:
    """Let another process compute without a pause, at the lowest priority, if `busy`."""
    if not busy:
        yield
        return
    command = ["nice", "-n", "19", sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()
