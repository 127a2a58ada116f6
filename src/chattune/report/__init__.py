"""The report stage: evaluations, comparisons and sweeps for people to read.

`page` writes one HTML file, `markdown` returns the same as Markdown, and `terminal` prints. They
share the sentences of `summary`, the tables of `tables`, the charts of `charts` and the replies as
`samples` arranges them; `figures` knows what each figure means and how it is written.
"""

from collections.abc import Sequence
from typing import Protocol


class Finding(Protocol):
    """A cause of failures that a diagnosis found, with the evidence for it and a remedy."""

    @property
    def title(self) -> str:
        """The cause in a few words."""

    @property
    def evidence(self) -> Sequence[str]:
        """Sentences that say what was seen."""

    @property
    def place(self) -> str:
        """The field of the recipe, or the decoding parameter, that the remedy changes."""

    @property
    def remedy(self) -> str:
        """What to do, in a sentence."""

    @property
    def command(self) -> str | None:
        """A command that applies the remedy, if there is a single one."""
