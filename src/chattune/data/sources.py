"""Where rows come from: a file, a folder of files, the Hub, or the embedded conversations."""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

from chattune.base import STARTER
from chattune.data.files import SUFFIXES, content_hash, file_rows, local_files
from chattune.data.hub_rows import hub_commit, hub_rows
from chattune.data.rows import Row
from chattune.errors import DataError
from chattune.recipe import DataRecipe

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_rows(recipe: DataRecipe, seed: int) -> Iterator[Row]:
    """Rows of the recipe's source, or a seeded sample of `recipe.rows` of them.

    A sample needs memory for its own rows only. Raises DataError for a source that is missing,
    empty or of no known kind; a row that cannot be read is yielded with its problem.
    """
    if _is_hub_id(recipe.source):
        rows = hub_rows(recipe, seed)
    else:
        rows = itertools.chain.from_iterable(file_rows(f) for f in local_files(recipe.source))
        if recipe.rows is not None:
            rows = iter(_sample(rows, recipe.rows, seed))
    first = next(rows, None)
    if first is None:
        raise DataError(f"{recipe.source}: empty, it holds no rows; give a file with conversations")
    return itertools.chain([first], rows)


def fingerprint(recipe: DataRecipe) -> str | None:
    """A hash of the source's content, or None where it cannot be told (Hub never reached)."""
    if _is_hub_id(recipe.source):
        return hub_commit(recipe.source)
    return content_hash(recipe.source)


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
