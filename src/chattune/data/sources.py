"""Where rows come from: a file, a folder of files, the Hub, or the embedded conversations."""

import csv
import glob
import gzip
import hashlib
import io
import itertools
import json
import logging
import random
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from chattune import hub
from chattune.base import STARTER, starter_folder
from chattune.errors import DataError
from chattune.recipe import DataRecipe

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_LINE = 32 << 20  # a longer line is no conversation; it is refused without being read whole
MAX_JSON = 512 << 20  # a JSON array has to be read whole
STARTER_CONVERSATIONS = "conversations.jsonl"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MAX_FETCHED = 512 << 20  # bytes of a Hub data set that are fetched for a mere sample of it
_SHUFFLE_BUFFER = 10_000
_STREAMING_RETRIES = 2  # each comes after five of the Hub client's own, 23 seconds in all

log = logging.getLogger(__name__)

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One record with the place it stands, or why it cannot be read."""

    where: str
    fields: Fields
    problem: str | None = None


def read_rows(recipe: DataRecipe, seed: int) -> Iterator[Row]:
    """Rows of the recipe's source, or a seeded sample of `recipe.rows` of them.

    A sample needs memory for its own rows only. Raises DataError for a source that is missing,
    empty or of no known kind; a row that cannot be read is yielded with its problem.
    """
    if _is_hub_id(recipe.source):
        rows = _hub_rows(recipe, seed)
    else:
        rows = itertools.chain.from_iterable(_file_rows(f) for f in local_files(recipe.source))
        if recipe.rows is not None:
            rows = iter(_sample(rows, recipe.rows, seed))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{recipe.source}: empty, it holds no rows; give a file with conversations")
    return itertools.chain([first], rows)


def local_files(source: str) -> list[Path]:
    """Files behind a local source, in the order they are read."""
    path = starter_folder() / STARTER_CONVERSATIONS if source == STARTER else Path(source)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and _suffix(f) in SUFFIXES)
        if not files:
            raise DataError(f"{source}: holds no {', '.join(SUFFIXES)} file (or .gz of these)")
        return files
    if not path.exists():
        raise DataError(f"{source}: no such file or folder, and not a Hub id such as org/data")
    if _suffix(path) not in SUFFIXES:
        raise DataError(f"{source}: unknown kind of file; known: {', '.join(SUFFIXES)}, .gz")
    return [path]


def fingerprint(recipe: DataRecipe) -> str | None:
    """A hash of the source's content, or None where it cannot be told (Hub never reached)."""
    if _is_hub_id(recipe.source):
        return _hub_commit(recipe.source)
    digest = hashlib.sha256()
    for path in local_files(recipe.source):
        try:
            if _suffix(path) not in (".parquet", ".json"):
                next(_lines(path), None)  # a monstrous line is refused before gigabytes are hashed
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: cannot be read ({error}); make the file again, it may be damaged"
            ) from error
    return digest.hexdigest()


def _is_hub_id(source: str) -> bool:
    return (
        source != STARTER
        and not Path(source).exists()
        and not source.endswith((*SUFFIXES, ".gz"))
        and _HUB_ID.fullmatch(source) is not None
        and not source.startswith(".")
    )


def _sample(rows: Iterator[Row], wanted: int, seed: int) -> list[Row]:
    """A uniform sample in one pass (Vitter's Algorithm R, 1985), in the order read."""
    rng = random.Random(seed)
    chosen: list[tuple[int, Row]] = []
    for i, row in enumerate(rows):
        if i < wanted:
            chosen.append((i, row))
        elif (j := rng.randrange(i + 1)) < wanted:
            chosen[j] = (i, row)
    return [row for _, row in sorted(chosen, key=lambda pair: pair[0])]


def _hub_commit(source: str) -> str | None:
    import huggingface_hub

    try:
        with hub.plain_errors():
            return str(huggingface_hub.HfApi().dataset_info(source, timeout=10).sha)
    except hub.NotThere:
        return None  # reading it will say so
    except hub.HubError:
        if commit := hub.last_commit(source, "dataset"):
            log.info("%s: the Hub cannot be reached; taking it as it was last", source)
        return commit


def _hub_rows(recipe: DataRecipe, seed: int) -> Iterator[Row]:
    """Rows of a Hub data set: of files that were compared with the Hub's hashes, or streamed.

    Only a sample of a data set of over MAX_FETCHED bytes is streamed. No file is seen whole then,
    so no hash can be compared: a broken connection, gzip and most of Parquet's damage are noticed,
    a flipped bit in JSON, CSV or uncompressed Parquet is not.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.utils import httpx

    source = recipe.source
    try:
        with hub.quiet_hub(datasets):
            commit = hub.fetch(source, "dataset", ["README.md"]).name
            builder = _builder(source, commit)
            files = _hub_files(builder)
            if recipe.rows is None or _hub_size(source, commit, files) <= MAX_FETCHED:
                hub.fetch(source, "dataset", [glob.escape(file) for file in files], commit)
                yield from _fetched_rows(builder, recipe, seed)
            else:
                yield from _streamed_rows(builder, recipe, seed)
    except (DatasetNotFoundError, hub.NotThere) as error:
        raise DataError(
            f"{source}: no such data set on the Hub (or it is private: hf auth login), "
            "and no such file"
        ) from error
    except hub.NotReached as error:
        raise DataError(
            f"{source}: not on this machine and the Hub cannot be reached; where there is a "
            f"network run `hf download --repo-type dataset {source} --local-dir FOLDER`, and give "
            "the folder"
        ) from error
    except hub.HubError as error:
        raise DataError(f"{source}: {error}") from error
    except (DatasetsError, httpx.HTTPError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{source}: cannot be read from the Hub ({hub.brief(error.__cause__ or error)}); give "
            "a local file instead, or try again"
        ) from error


def _builder(source: str, commit: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(source, revision=commit)
    except ConnectionError as error:
        raise hub.NotReached(hub.brief(error)) from error


def _hub_files(builder: Any) -> list[str]:
    """Paths in the repository of a configuration's files; none where the Hub was not reached."""
    urls = itertools.chain.from_iterable((builder.config.data_files or {}).values())
    return [url.partition("@")[2].partition("/")[2] for url in urls if url.startswith("hf://")]


def _hub_size(source: str, commit: str, files: list[str]) -> int:
    import huggingface_hub

    if not files:
        return 0
    about = huggingface_hub.HfApi().dataset_info(source, revision=commit, files_metadata=True)
    return sum(file.size or 0 for file in about.siblings or [] if file.rfilename in set(files))


def _fetched_rows(builder: Any, recipe: DataRecipe, seed: int) -> Iterator[Row]:
    """All rows, memory-mapped, or a uniform sample of them, in their order."""
    builder.download_and_prepare()
    data = builder.as_dataset(split=recipe.split)
    chosen: Iterable[int] = range(len(data))
    if recipe.rows is not None and recipe.rows < len(data):
        chosen = sorted(random.Random(seed).sample(range(len(data)), recipe.rows))
    for i in chosen:
        yield Row(f"{recipe.source}: row {i + 1}", data[i])


def _streamed_rows(builder: Any, recipe: DataRecipe, seed: int) -> Iterator[Row]:
    """A sample: row groups (or files) in a random order, and rows shuffled within a buffer.

    Less even than a uniform sample, but little more than the buffer comes down.
    """
    import datasets

    datasets.config.STREAMING_READ_MAX_RETRIES = _STREAMING_RETRIES  # of 20: ten minutes
    datasets.config.STREAMING_OPEN_MAX_RETRIES = _STREAMING_RETRIES
    data = builder.as_streaming_dataset(split=recipe.split).reshard()
    data = data.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER).take(recipe.rows)
    for i, fields in enumerate(data):
        yield Row(f"{recipe.source}: sampled row {i + 1}", dict(fields))


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file_rows(path: Path) -> Iterator[Row]:
    suffix = _suffix(path)
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(path)
        elif suffix in (".csv", ".tsv"):
            yield from _csv_rows(path, "," if suffix == ".csv" else "\t")
        elif suffix == ".json" and _starts_with_bracket(path):
            yield from _json_rows(path)
        else:
            yield from _jsonl_rows(path)
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three for a damaged archive
        raise DataError(
            f"{path}: cannot be read ({error}); make the file again, it may be damaged"
        ) from error


def _open(path: Path) -> BinaryIO:
    opened: Any = gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")
    return opened  # type: ignore[no-any-return]  # gzip's file type is not a BinaryIO


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of bytes, without a byte-order mark; a monstrous one is refused half-read."""
    with _open(path) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                raise DataError(
                    f"{path}:{number}: a line of over {MAX_LINE >> 20} MB; is it JSON Lines, one "
                    "record a line?"
                )
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield _row(where, json.loads(line.decode("utf-8")))
            except UnicodeDecodeError as error:
                yield Row(where, {}, f"invalid UTF-8 at byte {error.start + 1} of the line")
            except json.JSONDecodeError as error:
                yield Row(where, {}, f"broken JSON ({error.msg} at column {error.colno})")
            except ValueError as error:  # an integer of thousands of digits
                yield Row(where, {}, f"JSON that cannot be read ({error})")
            except RecursionError:
                yield Row(where, {}, "JSON nested too deeply")


def _json_rows(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        content = file.read(MAX_JSON + 1)
    if len(content) > MAX_JSON:
        raise DataError(f"{path}: a JSON array of over {MAX_JSON >> 20} MB; convert it to .jsonl")
    try:
        records = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: invalid UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: broken JSON ({error.msg} at column {error.colno}); mend it"
        ) from error
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"{path}: JSON that cannot be read ({why}); mend it") from error
    for i, record in enumerate(records, 1):
        yield _row(f"{path}: record {i}", record)


def _starts_with_bracket(path: Path) -> bool:
    with _open(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    def text() -> Iterator[str]:
        for number, line in _lines(path):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: invalid UTF-8 at byte {error.start + 1}; save it as UTF-8"
                ) from error

    csv.field_size_limit(min(sys.maxsize, MAX_LINE))
    reader = csv.DictReader(text(), delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1 if reader.line_num else 2
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}:{first}: broken CSV ({error}); mend the row") from error
        where = f"{path}:{reader.line_num}"
        if None in fields or None in fields.values():
            yield Row(where, {}, f"not {len(reader.fieldnames or [])} columns as in the first line")
        else:
            yield Row(where, fields)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    source: Any = path
    if path.name.lower().endswith(".gz"):
        with _open(path) as file:
            source = io.BytesIO(file.read())
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=1000):
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{path}: row {number}", fields)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{path}: damaged Parquet after row {number} ({error}); write it again"
        ) from error


def _row(where: str, record: Any) -> Row:
    if isinstance(record, dict):
        return Row(where, record)
    return Row(where, {}, f"expected an object with named fields, not {type(record).__name__}")
