"""The reader of Hub data sets: files are downloaded and compared with hashes, or streamed."""

import glob
import itertools
import logging
import random
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from chattune import hub
from chattune.data.formats import Row
from chattune.errors import DataError, HubError, HubNotFound, HubUnreachable, first_line
from chattune.recipe import Source

MAX_FETCHED = 512 << 20  # bytes; a sample of a larger data set is streamed
_SHUFFLE_BUFFER = 10_000
_STREAMING_RETRIES = 2  # each follows five retries of the Hub's client; 23 seconds in all

log = logging.getLogger(__name__)


def hub_commit(source: str) -> str | None:
    """Return the commit of the data set's main branch, or its last known one without a network.

    Returns None if the Hub has no such data set, or was never reached for it.
    """
    import huggingface_hub

    try:
        with hub.plain_errors():
            return str(huggingface_hub.HfApi().dataset_info(source, timeout=10).sha)
    except HubNotFound:
        return None  # hub_rows raises the error
    except HubError:
        if commit := hub.cached_commit(source, "dataset"):
            log.info("%s: the Hub cannot be reached; using the last known version", source)
        return commit


def hub_rows(source: Source, seed: int) -> Iterator[Row]:
    """Yield the rows of a Hub data set from downloaded files, compared with the Hub's hashes.

    A sample of a data set above MAX_FETCHED bytes is streamed instead. No file is read as a whole
    then, so no hash can be compared: a broken connection, damaged gzip and most damage in Parquet
    are noticed, but a flipped bit in JSON, CSV or uncompressed Parquet is not. Raises DataError.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.utils import httpx

    name = source.source
    try:
        with hub.quiet_hub(datasets):
            commit = hub.fetch(name, "dataset", ["README.md"]).name
            builder = _builder(name, commit)
            files = _hub_files(builder)
            if source.rows is None or _hub_size(name, commit, files) <= MAX_FETCHED:
                hub.fetch(name, "dataset", [glob.escape(file) for file in files], commit)
                yield from _fetched_rows(builder, source, seed)
            else:
                yield from _streamed_rows(builder, source, seed)
    except (DatasetNotFoundError, HubNotFound) as error:
        raise DataError(
            f"{name}: no such data set on the Hub, or it is private or gated, and no such file; "
            "check the name, or log in with `hf auth login`"
        ) from error
    except HubUnreachable as error:
        raise DataError(
            f"{name}: not on this machine, and the Hub cannot be reached; on a machine with a "
            f"network, run `hf download --repo-type dataset {name} --local-dir FOLDER`, and give "
            "that folder"
        ) from error
    except HubError as error:
        raise DataError(f"{name}: {error}") from error
    except (DatasetsError, httpx.HTTPError, OSError, EOFError, ValueError, zlib.error) as error:
        problem = hub.cache_problem(error) or (
            f"cannot be read from the Hub ({first_line(error.__cause__ or error)}); give a local "
            "file instead, or try again"
        )
        raise DataError(f"{name}: {problem}") from error


def _builder(source: str, commit: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(source, revision=commit)
    except ConnectionError as error:
        raise HubUnreachable(first_line(error)) from error


def _hub_files(builder: Any) -> list[str]:
    """Return the repository paths of a builder's files; none if the Hub was not reached."""
    urls = itertools.chain.from_iterable((builder.config.data_files or {}).values())
    return [url.partition("@")[2].partition("/")[2] for url in urls if url.startswith("hf://")]


def _hub_size(source: str, commit: str, files: list[str]) -> int:
    """Return the number of bytes of some of a data set's files."""
    import huggingface_hub

    if not files:
        return 0
    info = huggingface_hub.HfApi().dataset_info(source, revision=commit, files_metadata=True)
    return sum(file.size or 0 for file in info.siblings or [] if file.rfilename in set(files))


def _fetched_rows(builder: Any, source: Source, seed: int) -> Iterator[Row]:
    """Yield all rows from a memory-mapped table, or a uniform sample of them in order."""
    builder.download_and_prepare()
    data = builder.as_dataset(split=source.split)
    chosen: Iterable[int] = range(len(data))
    if source.rows is not None and source.rows < len(data):
        chosen = sorted(random.Random(seed).sample(range(len(data)), source.rows))
    for i in chosen:
        yield Row(f"{source.source}: row {i + 1}", data[i])


def _streamed_rows(builder: Any, source: Source, seed: int) -> Iterator[Row]:
    """Yield a sample: row groups (or files) in random order, and rows shuffled in a buffer.

    It is less even than a uniform sample, but little more than the buffer is downloaded.
    """
    import datasets

    datasets.config.STREAMING_READ_MAX_RETRIES = _STREAMING_RETRIES  # the default 20 take 10 min
    datasets.config.STREAMING_OPEN_MAX_RETRIES = _STREAMING_RETRIES
    data = builder.as_streaming_dataset(split=source.split).reshard()
    data = data.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER).take(source.rows)
    for i, fields in enumerate(data):
        yield Row(f"{source.source}: sampled row {i + 1}", dict(fields))
