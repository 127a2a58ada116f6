"""The run folder: the names of its files, its manifest and its checks.

Tuning hands its results to chatting, serving and exporting only through this folder. Each file in
it, except metrics.jsonl, is written under a temporary name and then renamed. The manifest, with the
size and SHA-256 of each file, is written last, so a folder without a manifest is an unfinished run.
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
from chattune.folders import apply_umask, check_output_folder, write_json
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
ADAPTER = ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GENERATION_CONFIG = "generation_config.json"  # the decoding parameters that the run recommends
SCORES, JUDGED_SAMPLES = "scores.json", "samples.jsonl"
SWEEP, DIAGNOSIS = "sweep.json", "diagnosis.json"
EVALUATION = SCORES, JUDGED_SAMPLES, SWEEP, DIAGNOSIS  # what is found out about a finished run
INT8 = "int8.safetensors"  # made from base and adapter when the run is first loaded for chat
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Open a finished run after comparing its files with the manifest.

        Raises RunError that names what is missing or changed.
        """
        path = Path(folder)
        if not path.is_dir():
            raise RunError(f"run {folder}: no such folder; check the path")
        if not (path / MANIFEST).is_file():
            if (path / RECIPE).is_file():
                raise RunError(f"run {folder}: not finished; go on with chattune tune --resume")
            raise RunError(
                f"run {folder}: not a run folder (it has no {MANIFEST}); give one made by "
                "chattune tune"
            )
        try:
            listed = dict(json.loads((path / MANIFEST).read_text("utf-8"))["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"run {folder}: {MANIFEST} is damaged ({error}); copy or tune the run again"
            ) from error
        for name in (RECIPE, FACTS, *ADAPTER):
            if name not in listed:
                raise RunError(
                    f"run {folder}: {MANIFEST} is damaged (it does not list {name}); "
                    "copy or tune the run again"
                )
        for name, expected in listed.items():
            if not (path / name).is_file():
                raise RunError(f"run {folder}: {name} is missing; copy or tune the run again")
            if size_and_hash(path / name) != expected:
                if is_lfs_pointer(path / name):
                    raise RunError(
                        f"run {folder}: {name} is a Git LFS pointer, not the file itself; run "
                        f"`git lfs pull` in {folder}"
                    )
                raise RunError(
                    f"run {folder}: {name} is not what was saved (its hash differs); "
                    "copy or tune the run again"
                )
        return cls(path)

    @property
    def recipe(self) -> Recipe:
        """The recipe with every field resolved."""
        return read_recipe(self.folder)

    @property
    def facts(self) -> dict[str, Any]:
        """The versions, device, fingerprints of base and data, steps and results of the run."""
        facts: dict[str, Any] = json.loads((self.folder / FACTS).read_text("utf-8"))
        return facts

    @property
    def base_place(self) -> str | None:
        """The Hub id or absolute path from which the base was loaded, if the adapter is saved."""
        path = self.folder / ADAPTER_CONFIG
        config: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        return config.get("base_model_name_or_path")

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Prompts with the base's and the tuned model's reply to each."""
        samples: list[dict[str, Any]] = json.loads((self.folder / SAMPLES).read_text("utf-8"))
        return samples


def is_run(folder: str | Path) -> bool:
    """Return whether a folder looks like a run, finished or not."""
    path = Path(folder)
    return (path / MANIFEST).is_file() or (
        (path / RECIPE).is_file() and (path / CHECKPOINTS).is_dir()
    )


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is what Git leaves in place of a large file that was not fetched."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe in a run folder, finished or not.

    Raises RunError if it is missing or damaged, or was written by an incompatible version.
    """
    try:
        return load_recipe(str(folder / RECIPE))
    except RecipeError as error:
        raise RunError(f"run {folder}: its recipe cannot be read: {error}") from error


def check_new_run(folder: Path) -> None:
    """Raise RunError or OutputError unless a new run can be written to `folder`."""
    if is_run(folder):
        raise RunError(
            f"output {folder}: already holds a run; choose another, or go on with --resume"
        )
    check_output_folder(folder, "output")


def save_into(folder: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write files to a temporary folder, then move each of them into `folder`."""
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".saving-"))
    try:
        save(temporary)
        apply_umask(temporary)
        for file in temporary.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(folder: Path) -> Run:
    """Write the manifest, which marks the run as finished.

    The int8 weights and the evaluation are not listed, because they can be made again at any time.
    """
    names = sorted(f.name for f in folder.iterdir() if f.is_file() and f.name[0] != ".")
    files = [folder / name for name in names if name not in (MANIFEST, INT8, *EVALUATION)]
    write_json(folder / MANIFEST, {"files": {f.name: size_and_hash(f) for f in files}})
    return Run(folder)


def unseal(folder: Path) -> None:
    """Remove the manifest before a finished run is trained further, and what it makes invalid."""
    for name in (MANIFEST, INT8, *EVALUATION):
        (folder / name).unlink(missing_ok=True)


def size_and_hash(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and its SHA-256, as the manifest lists them."""
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
