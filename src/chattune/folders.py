"""Files and folders that are written completely or not at all."""

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
    """Return $CHATTUNE_CACHE, or `chattune` in the user's cache folder; it may not exist yet."""
    if configured := os.environ.get("CHATTUNE_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "chattune"


def check_output_folder(folder: Path, option: str) -> None:
    """Raise OutputError unless `folder` is absent or empty and can be written to.

    `option` is the name by which the user gave the folder; the error begins with it.
    """
    in_use = any(folder.iterdir()) if folder.is_dir() else folder.exists() or folder.is_symlink()
    if in_use:
        raise OutputError(f"{option} {folder}: exists and is not an empty folder; choose another")
    nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise _unwritable(folder, option, error) from error


@contextmanager
def atomic_folder(folder: Path, option: str) -> Iterator[Path]:
    """Yield a temporary folder whose content becomes `folder` if the block ends without an error.

    After an error nothing is left behind, not even parent folders that were created. An OSError
    becomes an OutputError that begins with `option`.
    """
    missing_parents = [p for p in folder.absolute().parents if not p.exists()]
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        yield temporary
        # Temporary folders and the files that safetensors writes are private to their owner.
        for path in (temporary, *temporary.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.is_dir():  # kept, because it may be the current folder or hold a damaged cache
            for file in temporary.iterdir():
                file.replace(folder / file.name)
        else:
            temporary.replace(folder)
    except OSError as error:
        raise _unwritable(folder, option, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing_parents:
            with suppress(OSError):  # not empty, because the block succeeded
                parent.rmdir()


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as temporary:
        temporary.write(content)
        temporary.flush()
        os.fsync(temporary.fileno())
    Path(temporary.name).chmod(0o644)  # temporary files are private to their owner
    Path(temporary.name).replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON in one step, as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _unwritable(folder: Path, option: str, error: OSError) -> OutputError:
    return OutputError(
        f"{option} {folder}: cannot be written to ({error.strerror}); choose another"
    )
