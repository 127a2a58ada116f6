"""Files and folders that are written completely or not at all, and the folder of the cache."""

import atexit
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chattune.errors import OutputError

CACHE = "cache (CHATTUNE_CACHE)"  # the name of the cache, and of its variable, in errors

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of the cache; if it has to be created, only its owner can read it.

    It is $CHATTUNE_CACHE, or `chattune` in the user's cache folder. If the latter cannot be written
    to, or if there is no home directory, it is a temporary folder, which is logged once. Raises
    OutputError if $CHATTUNE_CACHE cannot be created.
    """
    if configured := os.environ.get("CHATTUNE_CACHE"):
        folder = Path(configured)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, CACHE, error) from error
        return folder
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chattune"
    except RuntimeError:
        return _temporary_cache("there is no home directory")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        return _temporary_cache(f"{folder} cannot be written to: {error.strerror}")


def _temporary_cache(reason: str) -> Path:
    """Create a cache for this process and those that it starts; it is removed when this one ends.

    The variables make them all use the same folder, so that the reason is logged once. Matplotlib,
    which draws the loss, needs a folder for the same reason.
    """
    try:
        folder = tempfile.mkdtemp(prefix="chattune-")
    except OSError as error:
        raise OutputError(
            f"{CACHE}: {reason}, and no temporary folder can be created ({error.strerror}); set "
            "CHATTUNE_CACHE to a folder that can be written to"
        ) from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["CHATTUNE_CACHE"] = folder
    os.environ.setdefault("MPLCONFIGDIR", folder)
    log.warning(
        "the cache is temporary, because %s; set CHATTUNE_CACHE to a folder where it can be kept",
        reason,
    )
    return Path(folder)


def check_output_folder(folder: Path, option: str) -> None:
    """Raise OutputError unless `folder` is absent or empty and can be written to.

    `option` is the name by which the user gave the folder; the error begins with it.
    """
    try:
        if any(folder.iterdir()) if folder.is_dir() else os.path.lexists(folder):
            raise OutputError(
                f"{option} {folder}: exists and is not an empty folder; choose another"
            )
        nearest = next(p for p in (folder, *folder.absolute().parents) if p.exists())
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
    missing_parents: list[Path] = []
    temporary = None
    try:
        missing_parents += (p for p in folder.absolute().parents if not p.exists())
        folder.parent.mkdir(parents=True, exist_ok=True)
        # An empty folder may be on another device than its parent: a mounted one, for example.
        place = folder if folder.is_dir() else folder.parent
        temporary = Path(tempfile.mkdtemp(dir=place, prefix=f".{folder.name}-"))
        yield temporary
        apply_umask(temporary)
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


def apply_umask(folder: Path) -> None:
    """Give a folder and all that it holds the permissions of new folders and files.

    Temporary folders, and the files that safetensors writes, are private to their owner instead.
    """
    probe = folder / f".{secrets.token_hex(8)}"  # os.umask() would change it for other threads
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    for path in (*folder.rglob("*"), folder):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with naming(path), temporary.open("xb") as file:  # it follows the umask, unlike tempfile's
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON in one step, as `write_bytes` does.

    Raises ValueError for a number that is not finite, which JSON cannot express.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError of the block the name of the file; that of a failed write has none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _unwritable(folder: Path, option: str, error: OSError) -> OutputError:
    return OutputError(
        f"{option} {folder}: cannot be written to ({error.strerror}); choose another"
    )
