"""Readers of local files: JSON Lines, JSON, CSV, TSV, Parquet, gzip of these, or a folder."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from chattune.base import STARTER, starter_folder
from chattune.data.formats import Row
from chattune.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MAX_LINE = 32 << 20  # bytes; a longer line is refused before it fills the memory
MAX_JSON = 512 << 20  # bytes; a JSON array has to be read into memory as a whole
# Sources that are embedded in chattune: all conversations, and those with few wordings each.
EMBEDDED = {STARTER: "conversations.jsonl", "starter-few": "few.jsonl"}
_READ_ERRORS = (OSError, EOFError, zlib.error)  # a damaged gzip file raises any of these


def local_files(source: str) -> list[Path]:
    """Return the files of a local source in the order in which they are read.

    Raises DataError if there is none, or if the file is of an unknown kind.
    """
    path = starter_folder() / EMBEDDED[source] if source in EMBEDDED else Path(source)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and _suffix(f) in SUFFIXES)
        if not files:
            raise DataError(
                f"{source}: holds no {', '.join(SUFFIXES)} file (or .gz of these); "
                "choose another folder"
            )
        return files
    if not path.exists():
        raise DataError(
            f"{source}: no such file or folder, and not a Hub id such as org/data; check the name"
        )
    if _suffix(path) not in SUFFIXES:
        raise DataError(f"{source}: unknown kind of file; known: {', '.join(SUFFIXES)}, .gz")
    return [path]


def content_hash(source: str) -> str:
    """Return a SHA-256 over the files of a local source.

    Raises DataError if one of them cannot be read.
    """
    digest = hashlib.sha256()
    for path in local_files(source):
        try:
            if _suffix(path) not in (".parquet", ".json"):
                next(_lines(path), None)  # refuses a first line above MAX_LINE before hashing
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except _READ_ERRORS as error:
            raise _unreadable(path, error) from error
    return digest.hexdigest()


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def file_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of one file.

    A single bad line becomes a row with a problem; raises DataError if the file is damaged.
    """
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
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: cannot be read ({error}); make the file again, it may be damaged")


def _open(path: Path) -> BinaryIO:
    opened: Any = gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")
    return opened  # type: ignore[no-any-return]  # gzip's file type is not a BinaryIO


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines without a byte-order mark; raises DataError for one above MAX_LINE."""
    with _open(path) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                raise DataError(
                    f"{path}:{number}: a line of over {MAX_LINE >> 20} MB; is it JSON Lines, with "
                    "one record per line?"
                )
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            location = f"{path}:{number}"
            try:
                yield _row(location, json.loads(line.decode("utf-8")))
            except UnicodeDecodeError as error:
                yield Row(location, {}, f"invalid UTF-8 at byte {error.start + 1} of the line")
            except json.JSONDecodeError as error:
                yield Row(location, {}, f"broken JSON ({error.msg} at column {error.colno})")
            except ValueError as error:  # Python refuses integers of thousands of digits
                yield Row(location, {}, f"JSON that cannot be read ({error})")
            except RecursionError:
                yield Row(location, {}, "JSON nested too deeply")


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
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"{path}: JSON that cannot be read ({reason}); mend it") from error
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
        first_line = reader.line_num + 1 if reader.line_num else 2
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}:{first_line}: broken CSV ({error}); mend the row") from error
        location = f"{path}:{reader.line_num}"
        if None in fields or None in fields.values():  # more or fewer values than columns
            columns = len(reader.fieldnames or [])
            yield Row(location, {}, f"not {columns} columns as in the first line")
        else:
            yield Row(location, fields)


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


def _row(location: str, record: Any) -> Row:
    if isinstance(record, dict):
        return Row(location, record)
    return Row(location, {}, f"expected an object with named fields, not {type(record).__name__}")
