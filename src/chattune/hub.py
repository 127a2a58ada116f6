"""The Hugging Face Hub: files come down whole and compared with its own hashes, or not at all.

The Hub's client checks sizes, not contents: a flipped bit would pass for a weight or a word.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from chattune.errors import HubError, HubNotFound, HubUnreachable, first_line

Kind = Literal["model", "dataset"]
_MARKER = ".chattune-verified"


def fetch(name: str, kind: Kind, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Bring the files that match into the Hub's cache; return their folder, named by the commit.

    Without a revision: of the main branch, or with no network as it was brought down last. Raises
    HubError.
    """
    import huggingface_hub

    with quiet_hub(), plain_errors():
        folder = Path(
            huggingface_hub.snapshot_download(
                name, repo_type=kind, allow_patterns=list(patterns), revision=revision
            )
        )
        _compare_hashes(name, kind, folder)
    return folder


def last_commit(name: str, kind: Kind) -> str | None:
    """The commit that the main branch had when it was fetched last."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
    try:
        return (folder / "refs" / "main").read_text("utf-8").strip()
    except OSError:
        return None


def _compare_hashes(name: str, kind: Kind, folder: Path) -> None:
    """Remove what differs from the Hub's hashes, else the next attempt would find it in the cache.

    A marker among the files remembers the check, so that gigabytes are hashed once.
    """
    import huggingface_hub
    from huggingface_hub import errors as hub
    from huggingface_hub.utils import httpx

    files = _listing(folder)
    marker = folder / _MARKER
    if not files or (marker.exists() and marker.read_text("utf-8") == files):
        return
    try:
        api = huggingface_hub.HfApi()
        checked = api.verify_repo_checksums(name, repo_type=kind, revision=folder.name)
    except (hub.OfflineModeIsEnabled, httpx.ConnectError, httpx.TimeoutException):
        return  # these files were cached, and checked, when there was a network
    if broken := [mismatch["path"] for mismatch in checked.mismatches]:
        for path in broken:
            (folder / path).resolve().unlink(missing_ok=True)  # the content behind the link
            (folder / path).unlink(missing_ok=True)
        raise HubError(
            f"{', '.join(broken)} came down damaged (not what the Hub's hash says) and was "
            "removed; run the command again"
        )
    with suppress(OSError):  # a cache that others own may be read-only
        marker.write_text(files, "utf-8")


def _listing(folder: Path) -> str:
    """Every file with size and time: one that was fetched again is checked again."""
    lines = []
    for path in folder.rglob("*"):
        if path.is_file() and path.name != _MARKER:
            about = path.stat()
            lines.append(f"{path.relative_to(folder)} {about.st_size} {about.st_mtime_ns}")
    return "\n".join(sorted(lines))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what the Hub's client and the network library below it raise into HubError."""
    from huggingface_hub import errors as hub
    from huggingface_hub.utils import httpx

    try:
        yield
    except hub.RepositoryNotFoundError as error:
        raise HubNotFound(first_line(error)) from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise HubUnreachable(first_line(error)) from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise HubError(f"the download failed ({first_line(error)}); try again") from error


@contextmanager
def quiet_hub(*libraries: Any) -> Iterator[None]:
    """No reports of retries on the way to an error, and progress bars only for somebody's eyes.

    `libraries` are others with bars that are switched as the Hub client's are.
    """
    from huggingface_hub import utils
    from huggingface_hub.utils import logging as hub_logging  # sets its level when imported

    watched = sys.stderr.isatty() and not os.environ.get("CI")
    bars = [x for x in (utils, *libraries) if not watched and not x.are_progress_bars_disabled()]
    loggers = [hub_logging.get_logger("huggingface_hub"), logging.getLogger("datasets")]
    with ExitStack() as undo:
        for library in bars:
            undo.callback(library.enable_progress_bars)
            library.disable_progress_bars()
        for logger in loggers:
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield
