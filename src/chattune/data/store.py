"""Tokenised conversations on disk: an Arrow stream, written row by row and memory-mapped back."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from chattune.template import Rendered

if TYPE_CHECKING:
    from datasets import Dataset

_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
_ROWS_A_BATCH = 1000


class TableWriter:
    """Appends rendered conversations to one file; memory stays at a thousand of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Rendered] = []

    def write(self, rendered: Rendered) -> None:
        """Add one conversation."""
        self._rows.append(rendered)
        if len(self._rows) == _ROWS_A_BATCH:
            self._flush()

    def _flush(self) -> None:
        ids = [r.ids for r in self._rows]
        labels = [r.labels for r in self._rows]
        columns = {"input_ids": ids, "labels": labels}
        self._file.write_batch(pa.RecordBatch.from_pydict(columns, schema=_SCHEMA))
        self._rows = []

    def __enter__(self) -> Self:
        self._file = pa.ipc.new_stream(self._path, _SCHEMA)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rows and kind is None:
            self._flush()
        self._file.close()


def read_table(path: Path) -> "Dataset":
    """Map a file written by TableWriter; columns input_ids and labels."""
    from datasets import Dataset

    return Dataset.from_file(str(path))
