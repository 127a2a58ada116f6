"""The lock of a run folder, so that no two processes tune into it at the same time."""

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from chattune.errors import OutputError, RunError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

LOCK = ".lock"  # the manifest of a run lists no file whose name begins with a dot


def refuse_owned(folder: Path) -> None:
    """Raise RunError if a run is being tuned into `folder`; remove a lock that was left behind."""
    with suppress(OSError):  # a folder that cannot be looked into is reported when it is used
        if (folder / LOCK).exists():
            with sole_owner(folder):
                pass


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` during the block; the folder is created if it is missing.

    The operating system holds the lock for this process, and gives it up when the process ends in
    whatever way. The file names the owner. If the block leaves a created folder empty, it is
    removed. Raises RunError if another process, or another thread of this one, holds the lock, and
    OutputError if the folder cannot be created.
    """
    path = folder.absolute()
    try:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"output {folder}: cannot be created ({error.strerror}); choose another"
        ) from error
    descriptor = None
    try:
        descriptor = _acquire(folder)
        yield
    finally:
        if descriptor is not None:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(descriptor)
        for created in missing:
            with suppress(OSError):  # not empty, because a run has been started in it
                created.rmdir()


def _acquire(folder: Path) -> int | None:
    """Lock `folder` and return the open lock file, or None if there can be no lock."""
    if sys.platform == "win32":  # it has no flock
        return None
    path = folder / LOCK
    while True:
        descriptor = _open(path)
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise RunError(
                f"output {folder}: is being tuned into by {owner or 'another process'}; wait until "
                "that ends, stop it, or choose another output"
            ) from None
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s); start no other run in it", folder, error)
        if _is_open_file(path, descriptor):
            break
        os.close(descriptor)  # its owner removed it before this process had locked it
    if owner := _owner(descriptor):
        log.info("the lock of %s is taken over from %s, which is gone", folder, owner)
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
    with suppress(OSError):  # the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(facts).encode(), 0)
    return descriptor


def _open(path: Path) -> int | None:
    """Open a lock file, or return None: a folder that cannot be written to needs no lock."""
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):  # the second for that of another user
        with suppress(OSError):
            return os.open(path, flags, 0o666)
    return None


def _owner(descriptor: int) -> str | None:
    """Return what a lock file says of its owner, or None if it is empty or damaged."""
    try:
        facts = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (ValueError, KeyError, TypeError):
        return None


def _is_open_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")
