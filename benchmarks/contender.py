"""Run one contender of a benchmark in a process of its own."""

import json
import os
import subprocess
import sys
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
