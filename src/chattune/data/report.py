"""The data report: what was read, what was kept and why not, and how it looks in tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from chattune.conversation import Conversation
from chattune.template import Rendered, Template

_QUANTILES = (0, 0.25, 0.5, 0.75, 0.95, 1)


@dataclass(frozen=True)
class DataReport:
    """Counts of one preparation. `rows == kept + sum(dropped.values())`, always."""

    source: str
    format: str
    rows: int
    kept: int
    dropped: dict[str, int]
    train: int
    validation: int
    tokens: int
    supervised_tokens: int
    cut: dict[str, int]
    turns: dict[int, int]
    length_quantiles: dict[str, int]
    languages: dict[str, int]
    fingerprint: str

    def __post_init__(self) -> None:
        if self.rows != self.kept + sum(self.dropped.values()):
            raise AssertionError(f"{self.rows} rows, but {self.kept} kept and {self.dropped}")
        if self.kept != self.train + self.validation:
            raise AssertionError(f"{self.kept} kept, but {self.train} + {self.validation}")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataReport":
        """The inverse of `to_json`, after a trip through JSON."""
        return cls(**{**values, "turns": {int(k): v for k, v in values["turns"].items()}})


def length_quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Quantiles of conversation lengths in tokens."""
    return {f"{q:.0%}": int(np.quantile(lengths, q)) for q in _QUANTILES}


def languages(conversations: Sequence[Conversation]) -> dict[str, int]:
    """Languages as langid tells them (Lui and Baldwin 2012), most common first."""
    import py3langid

    texts = [" ".join(m.content for m in c.messages)[:1000] for c in conversations]
    return dict(Counter(py3langid.classify(text)[0] for text in texts).most_common())


def as_table(report: DataReport) -> RenderableType:
    """The report for a terminal."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("source", f"{escape(report.source)} (recognised as {report.format})")
    table.add_row("rows", f"{report.rows:,} = {report.kept:,} kept + {_lost(report.dropped)}")
    table.add_row("split", f"{report.train:,} train, {report.validation:,} validation")
    table.add_row(
        "tokens",
        f"{report.tokens:,}, of which {report.supervised_tokens:,} supervised "
        f"({report.supervised_tokens / max(1, report.tokens):.0%})",
    )
    cut = report.cut
    table.add_row(
        "cut to length",
        f"{cut['conversations']:,} conversations, {cut['tokens']:,} tokens and "
        f"{cut['replies']:,} whole replies left out",
    )
    table.add_row("replies each", ", ".join(f"{n}: {c:,}" for n, c in report.turns.items()))
    table.add_row(
        "length", ", ".join(f"{q}: {n}" for q, n in report.length_quantiles.items()) + " tokens"
    )
    total = sum(report.languages.values())
    table.add_row(
        "languages",
        ", ".join(f"{lang} {n / total:.0%}" for lang, n in list(report.languages.items())[:8]),
    )
    return table


def as_mask(examples: Sequence[Rendered], template: Template) -> RenderableType:
    """Examples with the supervised tokens in reverse green: what the model is taught to write."""
    shown: list[RenderableType] = []
    for n, example in enumerate(examples, 1):
        taught = sum(example.supervised)
        text = Text(f"example {n}: {len(example.ids)} tokens, {taught} supervised\n")
        for ids, supervised in _stretches(example):
            words = template.decode(ids, special=True)
            text.append(words, style="black on green" if supervised else "dim")
        shown.append(text)
    return Group(*shown)


def _stretches(example: Rendered) -> list[tuple[list[int], bool]]:
    stretches: list[tuple[list[int], bool]] = []
    for token, supervised in zip(example.ids, example.supervised, strict=True):
        if not stretches or stretches[-1][1] != supervised:
            stretches.append(([], supervised))
        stretches[-1][0].append(token)
    return stretches


def named_counts(counts: dict[str, int]) -> str:
    """`duplicate 3, empty_turn 1`."""
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _lost(counts: dict[str, int]) -> str:
    return f"{sum(counts.values()):,} dropped" + (f" ({named_counts(counts)})" if counts else "")
