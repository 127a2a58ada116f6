"""Rows of one format to conversations, counted as they pass."""

import json
from collections import Counter
from collections.abc import Iterator

from chattune.conversation import Conversation
from chattune.data.formats import Format, known_fields, recognise
from chattune.data.rows import Row
from chattune.errors import BadRow, DataError
from chattune.recipe import DataRecipe


class Reading:
    """An iterator over the conversations of rows of one format.

    `rows` counts conversations read and rows that gave none (so that rows = kept + dropped also
    for trees, which hold several).
    """

    def __init__(self, rows: Iterator[Row], recipe: DataRecipe, dropped: Counter[str]) -> None:
        self._source, self._recipe, self._dropped = rows, recipe, dropped
        self._first: tuple[Row, Format] | None = None
        self.rows = 0

    @property
    def format(self) -> str:
        """Name of the format, once a row has been read."""
        return self._first[1].name if self._first else "none"

    def __iter__(self) -> Iterator[Conversation]:
        for row in self._source:
            try:
                found = self._read(row)
            except BadRow as problem:
                if not self._recipe.skip_bad_rows:
                    raise DataError(
                        f"{row.where}: {problem}; mend it, or pass --skip-bad-rows to count and "
                        "leave out such rows"
                    ) from None
                self.rows += 1
                self._dropped["bad_row"] += 1
                continue
            self.rows += max(1, len(found))
            self._dropped["no_assistant_turn"] += not found
            yield from found

    def _read(self, row: Row) -> list[Conversation]:
        if row.problem:
            raise BadRow(row.problem)
        shape = recognise(row.fields, self._recipe)
        if shape is None:
            raise BadRow(
                f"unknown fields ({_shown(row)}); known formats: {known_fields()}; or name your "
                "columns with --set data.columns='{user: ..., assistant: ...}'"
            )
        if self._first is None:
            self._first = row, shape
        first, expected = self._first
        if shape.name != expected.name:
            raise BadRow(
                f"mixed shapes: this row is {shape.name} ({_shown(row)}), but {first.where} is "
                f"{expected.name} ({_shown(first)}); give one file a shape"
            )
        return shape.read(row.fields, self._recipe)


def _shown(row: Row) -> str:
    text = json.dumps(row.fields, ensure_ascii=False, default=str)
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)  # one line, always
    return text if len(text) <= 120 else text[:117] + "..."
