"""Run: the run folder. Every file in it is named here and nowhere else.

Stages meet only in this folder. Files appear whole (written aside, then renamed); the manifest,
with each file's size and SHA-256, comes last: a folder without one is a run that is not finished.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chattune.errors import RecipeError, RunError
from chattune.folders import refuse_in_use, write_json
from chattune.recipe import Recipe, load_recipe

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"
FACTS = "run.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.json"
LOSS_PLOT = "loss.png"
CARD = "README.md"
CHECKPOINTS = "checkpoints"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
INT8 = "int8.safetensors"  # made of the adapter and the base when the run is first talked to


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Check a run folder against its manifest.

        Raises RunError that says what is missing or changed.
        """
        path = Path(folder)
        if not path.is_dir():
            raise RunError(f"run {folder}: no such folder")
        if not (path / MANIFEST).is_file():
            if (path / RECIPE).is_file():
                raise RunError(f"run {folder}: not finished; go on with chattune tune --resume")
            raise RunError(f"run {folder}: not a run folder (it has no {MANIFEST})")
        try:
            listed = dict(json.loads((path / MANIFEST).read_text("utf-8"))["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"run {folder}: {MANIFEST} is damaged ({error})") from error
        for name in (RECIPE, FACTS, *ADAPTER):
            if name not in listed:
                raise RunError(f"run {folder}: {MANIFEST} is damaged (it does not list {name})")
        for name, expected in listed.items():
            if not (path / name).is_file():
                raise RunError(f"run {folder}: {name} is missing")
            if _describe(path / name) != expected:
                raise RunError(f"run {folder}: {name} is not what was saved (its hash differs)")
        return cls(path)

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return read_recipe(self.folder)

    @property
    def facts(self) -> dict[str, Any]:
        """Versions, device, base and data fingerprints, steps and final numbers."""
        return _read_json(self.folder / FACTS)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Replies of the base beside the tuned model's."""
        rows: list[dict[str, Any]] = json.loads((self.folder / SAMPLES).read_text("utf-8"))
        return rows


def is_run(folder: str | Path) -> bool:
    """Whether a folder looks like a run, finished or not."""
    path = Path(folder)
    return (path / MANIFEST).is_file() or (
        (path / RECIPE).is_file() and (path / CHECKPOINTS).is_dir()
    )


def read_recipe(folder: Path) -> Recipe:
    """The recipe written into a run folder, finished or not."""
    try:
        return load_recipe(str(folder / RECIPE))
    except RecipeError as error:
        raise RunError(f"run {folder}: its recipe cannot be read: {error}") from error


def refuse_run(folder: Path) -> None:
    """Raise RunError or OutputError unless `folder` can become a run."""
    if is_run(folder):
        raise RunError(
            f"output {folder}: already holds a run; choose another, or go on with --resume"
        )
    refuse_in_use(folder, "output")


def write_folder(folder: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write its files aside, then move each into the run."""
    aside = Path(tempfile.mkdtemp(dir=folder, prefix=".saving-"))
    try:
        save(aside)
        for file in aside.iterdir():
            file.chmod(0o644)  # some libraries write for their user alone
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def seal(folder: Path) -> Run:
    """Write the manifest: from here on the run counts as finished."""
    names = sorted(f.name for f in folder.iterdir() if f.is_file() and f.name[0] != ".")
    files = [folder / name for name in names if name not in (MANIFEST, INT8)]
    write_json(folder / MANIFEST, {"files": {f.name: _describe(f) for f in files}})
    return Run(folder)


def unseal(folder: Path) -> None:
    """Take the manifest away before a finished run is trained on, and what was made of it."""
    for name in (MANIFEST, INT8):
        (folder / name).unlink(missing_ok=True)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content
