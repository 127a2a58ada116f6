"""Downloads from the Hugging Face Hub, compared with the Hub's own hashes.

The Hub's client checks the size of a file but not its content: a flipped bit would pass as a weight
or a word.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from chattune.errors import HubError, HubNotFound, HubUnreachable, first_line

Kind = Literal["model", "dataset"]
_VERIFIED = ".chattune-verified"  # a file in the snapshot that lists what was compared
_UNWRITABLE = {  # the errors of a folder that no file can be written to
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.ENOSPC, errno.EDQUOT),
}


def is_hub_id(name: str, kind: Kind) -> bool:
    """Return whether `name` has the form of a Hub id: `owner/name`, or for a model also `name`.

    Old models such as gpt2 have no owner.
    """
    pattern = r"(?!\.)[\w.-]+/[\w.-]+"
    if kind == "model":
        pattern += r"|[\w-]+"
    return re.fullmatch(pattern, name) is not None


def fetch(name: str, kind: Kind, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Download the files that match `patterns` into the Hub's cache and return their folder.

    The folder is named after the commit. Without a revision, this is the head of the main branch,
    or without a network the commit that was downloaded last. Raises HubError.
    """
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_CACHE.startswith("~"):  # it stays in the path if there is no home
        raise HubError("there is no home directory to keep downloads in; set HF_HOME to a folder")
    with quiet_hub(), plain_errors():
        folder = Path(
            huggingface_hub.snapshot_download(
                name, repo_type=kind, allow_patterns=list(patterns), revision=revision
            )
        )
        _compare_hashes(name, kind, folder)
    return folder


def cached_commit(name: str, kind: Kind) -> str | None:
    """Return the commit of the main branch at the last download, or None without one."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    try:
        return (folder / "refs" / "main").read_text("utf-8").strip()
    except OSError:
        return None


def _compare_hashes(name: str, kind: Kind, folder: Path) -> None:
    """Remove files that differ from the Hub's hashes and raise HubError if there were any.

    A damaged file left in the cache would be used by the next attempt. A list of the compared files
    is kept beside them, so that gigabytes are hashed only once.
    """
    import huggingface_hub
    from huggingface_hub import errors as hub
    from huggingface_hub.utils import httpx

    files = _listing(folder)
    verified = folder / _VERIFIED
    if not files or (verified.exists() and verified.read_text("utf-8") == files):
        return
    try:
        api = huggingface_hub.HfApi()
        checked = api.verify_repo_checksums(name, repo_type=kind, revision=folder.name)
    except (hub.OfflineModeIsEnabled, httpx.ConnectError, httpx.TimeoutException):
        return  # the files come from the cache and were compared when they were downloaded
    if damaged := [mismatch["path"] for mismatch in checked.mismatches]:
        for path in damaged:
            (folder / path).resolve().unlink(missing_ok=True)  # the content behind the link
            (folder / path).unlink(missing_ok=True)
        raise HubError(
            f"{', '.join(damaged)}: damaged in the download (the hash differs from the Hub's) and "
            "removed; run the command again"
        )
    with suppress(OSError):  # the cache may be another user's and read-only
        verified.write_text(files, "utf-8")


def _listing(folder: Path) -> str:
    """List every file with its size and time, so that a file downloaded anew is compared anew."""
    lines = []
    for path in folder.rglob("*"):
        if path.is_file() and path.name != _VERIFIED:
            status = path.stat()
            lines.append(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(sorted(lines))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the errors of the Hub's client and of its network library into HubError."""
    from huggingface_hub import errors as hub
    from huggingface_hub.utils import httpx

    try:
        yield
    except hub.RepositoryNotFoundError as error:
        raise HubNotFound(first_line(error)) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise HubUnreachable(first_line(error)) from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        problem = cache_problem(error) or f"the download failed ({first_line(error)}); try again"
        raise HubError(problem) from error


def cache_problem(error: BaseException) -> str | None:
    """Return the message for an error that says that downloads cannot be kept, or else None."""
    from huggingface_hub import constants

    if not isinstance(error, OSError) or error.errno not in _UNWRITABLE:
        return None
    return (
        f"{error.filename or constants.HF_HOME} cannot be used to keep downloads "
        f"({error.strerror}); set HF_HOME to a folder that can be written to"
    )


@contextmanager
def quiet_hub(*libraries: Any) -> Iterator[None]:
    """Silence the reports of retries, and the progress bars unless a person watches a terminal.

    `libraries` are other modules whose progress bars are switched as the Hub client's are.
    """
    from huggingface_hub import utils
    from huggingface_hub.utils import logging as hub_logging  # sets its level when imported

    watched = sys.stderr.isatty() and not os.environ.get("CI")
    to_silence = [
        library
        for library in (utils, *libraries)
        if not watched and not library.are_progress_bars_disabled()
    ]
    loggers = [hub_logging.get_logger("huggingface_hub"), logging.getLogger("datasets")]
    with ExitStack() as undo:
        for library in to_silence:
            undo.callback(library.enable_progress_bars)
            library.disable_progress_bars()
        for logger in loggers:
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield
