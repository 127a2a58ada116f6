"""Row: one record of a source, whatever it was read from."""

from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One record with the place it stands, or why it cannot be read."""

    where: str
    fields: Fields
    problem: str | None = None
