"""Recipes of a few steps, and what the runs of them hold."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from chattune.device import Device, find_device
from chattune.recipe import Recipe
from chattune.run import Run
from conftest import TALK, write_talk


def in_fp32() -> Device:
    """Return this machine's device without bf16, whose rounding would hide small differences."""
    return replace(find_device(), bf16=False)


def recipe(base: Path, data: Path, **changes: Any) -> Recipe:
    """Return a recipe of few steps; `changes` are dotted fields with __ for the dot."""
    tree: dict[str, Any] = {
        "base": str(base),
        "data": {
            "source": str(data),
            "max_length": 64,
            "validation": 0,
            "near_duplicates": "keep",
        },
        "lora": {"rank": 4, "dropout": 0.1},
        "training": {
            "steps": 4,
            "batch_size": 2,
            "accumulation": 1,
            "learning_rate": 5e-3,
            "evaluate_every": 2,
        },
    }
    for field, value in changes.items():
        section, _, leaf = field.rpartition("__")
        (tree[section] if section else tree)[leaf] = value
    return Recipe.model_validate(tree)


def adapter(run: Run) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run.folder / "adapter_model.safetensors")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_talks(path: Path) -> Path:
    """Write 32 conversations, of which a share can be held out."""
    return write_talk(path, [(f"{q} ({i})", a) for i in range(8) for q, a in TALK])
