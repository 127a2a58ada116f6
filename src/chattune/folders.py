"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chattune.errors import OutputError


def cache_folder() -> Path:
    """What can be made again is kept in $CHATTUNE_CACHE, or in chattune in the user's cache."""
    if named := os.environ.get("CHATTUNE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "chattune"


def refuse_in_use(folder: Path, option: str) -> None:
    """Raise OutputError unless `folder` can be made: absent or empty, and in a writable place."""
    in_use = any(folder.iterdir()) if folder.is_dir() else folder.exists() or folder.is_symlink()
    if in_use:
        raise OutputError(f"{option} {folder}: exists and is not an empty folder; choose another")
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise _unwritable(folder, option, error) from error


@contextmanager
def whole_folder(folder: Path, option: str) -> Iterator[Path]:
    """A folder to write into; at the end what it holds is moved to `folder`, or nothing is left."""
    missing = [p for p in folder.absolute().parents if not p.exists()]
    aside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        yield aside
        for path in (aside, *aside.rglob("*")):  # temporary folders are private, and safetensors
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.is_dir():  # the current folder, a mount point, a damaged entry of the cache
            for file in aside.iterdir():
                file.replace(folder / file.name)
        else:
            aside.replace(folder)
    except OSError as error:
        raise _unwritable(folder, option, error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # not empty: it all went well
                parent.rmdir()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: a reader sees the old one or the new one."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as aside:
        aside.write(content)
        aside.flush()
        os.fsync(aside.fileno())
    Path(aside.name).chmod(0o644)  # temporary files are private
    Path(aside.name).replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, readable by a person."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _unwritable(folder: Path, option: str, error: OSError) -> OutputError:
    return OutputError(
        f"{option} {folder}: cannot be written to ({error.strerror}); choose another"
    )
