"""The sources of rows: a file, a folder of files, the Hub, or the embedded conversations."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from chattune import hub
from chattune.data.files import EMBEDDED, SUFFIXES, content_hash, file_rows, local_files
from chattune.data.formats import Row
from chattune.data.hub_rows import hub_commit, hub_rows
from chattune.errors import DataError
from chattune.recipe import Source


def read_rows(source: Source, seed: int) -> Iterator[Row]:
    """Return the rows of a source, or a seeded sample of `source.rows` of them.

    Only the rows of a sample are held in memory. A row that cannot be read is yielded with its
    problem. Raises DataError if the source is missing, empty or of an unknown kind.
    """
    if _is_hub_id(source.source):
        rows = hub_rows(source, seed)
    else:
        rows = itertools.chain.from_iterable(file_rows(f) for f in local_files(source.source))
        if source.rows is not None:
            rows = iter(_sample(rows, source.rows, seed))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source.source}: empty; give a source with conversations")
    return itertools.chain([first], rows)


def source_hash(source: Source) -> str | None:
    """Return a hash of a source's content, or None if a Hub data set's commit is unknown."""
    if _is_hub_id(source.source):
        return hub_commit(source.source)
    return content_hash(source.source)


def _is_hub_id(source: str) -> bool:
    return (
        source not in EMBEDDED
        and not Path(source).exists()
        and not source.endswith((*SUFFIXES, ".gz"))
        and hub.is_hub_id(source, "dataset")
    )


def _sample(rows: Iterator[Row], wanted: int, seed: int) -> list[Row]:
    """Draw a uniform sample in one pass (Vitter's Algorithm R, 1985); the order is kept."""
    rng = random.Random(seed)
    chosen: list[tuple[int, Row]] = []
    for i, row in enumerate(rows):
        if i < wanted:
            chosen.append((i, row))
        elif (j := rng.randrange(i + 1)) < wanted:
            chosen[j] = (i, row)
    return [row for _, row in sorted(chosen, key=lambda pair: pair[0])]
