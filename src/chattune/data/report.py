"""The counts of one preparation: collected by Tally, kept in DataReport, shown in a terminal."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from chattune.conversation import Conversation
from chattune.template import Rendered, Template

_QUANTILES = (0, 0.25, 0.5, 0.75, 0.95, 1)
_MAX_EXAMPLES = 16
_LANGUAGE_SAMPLE = 500  # at most so many training conversations have their language detected


@dataclass(frozen=True)
class SourceCount:
    """How many rows of one source were read, in which format, and how many were kept.

    `wanted` is the number that the weight of a mixed source asks for, and None for the main source.
    """

    source: str
    format: str
    rows: int
    kept: int
    wanted: int | None = None


@dataclass(frozen=True)
class DataReport:
    """Counts of one preparation; `rows == kept + sum(dropped.values())` always holds.

    `source` and `format` are those of the main source, and `sources` has an entry for each source,
    the main one first. `length_quantiles` are in tokens, `turns` maps replies per conversation to
    conversations, and `fingerprint` is a hash of the tokens that are trained and validated on.
    """

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
    sources: list[SourceCount] = field(default_factory=list)  # reports of older versions have none

    def __post_init__(self) -> None:
        if self.rows != self.kept + sum(self.dropped.values()):
            raise AssertionError(f"{self.rows} rows, but {self.kept} kept and {self.dropped}")
        if self.kept != self.train + self.validation:
            raise AssertionError(f"{self.kept} kept, but {self.train} + {self.validation}")
        counts = [sum(s.rows for s in self.sources), sum(s.kept for s in self.sources)]
        if self.sources and counts != [self.rows, self.kept]:
            raise AssertionError(f"{self.rows} rows, {self.kept} kept, but {self.sources}")

    def to_json(self) -> dict[str, Any]:
        """Return the report as a dictionary that can be written as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataReport":
        """Build a report from parsed JSON, whose object keys are always strings."""
        turns = {int(k): v for k, v in values["turns"].items()}
        sources = [SourceCount(**count) for count in values.get("sources", [])]
        return cls(**{**values, "turns": turns, "sources": sources})


@dataclass
class Tally:
    """Running counts that the steps from row to training example update in place.

    `rows` counts conversations read and rows that gave none, so that `rows == kept + dropped`
    also holds for trees, which hold several conversations each. `format` is that of the source that
    is read, until `end_source` counts it among the `sources`.
    """

    format: str = "none"
    sources: list[SourceCount] = field(default_factory=list)
    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: dict[str, int] = field(
        default_factory=lambda: {"conversations": 0, "tokens": 0, "replies": 0}
    )
    lengths: Counter[int] = field(default_factory=Counter)
    supervised: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    validation: int = 0
    held_out: list[Conversation] = field(default_factory=list)
    trained: list[Conversation] = field(default_factory=list)
    stride: int = 1  # `trained` has every so many-th training conversation, from all sources alike

    def add(self, conversation: Conversation, rendered: Rendered, held_out: bool) -> None:
        """Count one kept conversation."""
        self.kept += 1
        self.lengths[len(rendered.ids)] += 1
        self.supervised += sum(rendered.supervised)
        self.turns[conversation.roles.count("assistant")] += 1
        self.validation += held_out
        if held_out and len(self.held_out) < _MAX_EXAMPLES:
            self.held_out.append(conversation)
        elif not held_out and (self.kept - self.validation - 1) % self.stride == 0:
            self.trained.append(conversation)
            if len(self.trained) == _LANGUAGE_SAMPLE:
                del self.trained[1::2]
                self.stride *= 2

    def end_source(self, source: str, wanted: int | None = None) -> None:
        """Count what was read and kept since the last source ended as that of `source`.

        Conversations of a mixed source that were neither kept nor dropped before are those that
        its weight leaves out; they are dropped as not_sampled.
        """
        if wanted is not None:
            self.dropped["not_sampled"] += self.rows - self.kept - self.dropped.total()
        rows = self.rows - sum(s.rows for s in self.sources)
        kept = self.kept - sum(s.kept for s in self.sources)
        self.sources.append(SourceCount(source, self.format, rows, kept, wanted))
        self.format = "none"

    @property
    def examples(self) -> list[Conversation]:
        """A few held-out conversations, or training ones if nothing is held out."""
        return self.held_out or self.trained[:_MAX_EXAMPLES]

    def report(self, tables_hash: str) -> DataReport:
        """Return the report of everything counted so far."""
        lengths = list(self.lengths.elements())
        return DataReport(
            source=self.sources[0].source,
            format=self.sources[0].format,
            rows=self.rows,
            kept=self.kept,
            dropped={reason: n for reason, n in sorted(self.dropped.items()) if n},
            train=self.kept - self.validation,
            validation=self.validation,
            tokens=sum(lengths),
            supervised_tokens=self.supervised,
            cut=self.cut,
            turns=dict(sorted(self.turns.items())),
            length_quantiles=length_quantiles(lengths) if lengths else {},
            languages=languages(self.trained + self.held_out),
            fingerprint=tables_hash,
            sources=self.sources,
        )


def length_quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Compute quantiles of conversation lengths in tokens, keyed by percentage."""
    return {f"{q:.0%}": int(np.quantile(lengths, q)) for q in _QUANTILES}


def languages(conversations: Sequence[Conversation]) -> dict[str, int]:
    """Count the conversations of each language, most common first.

    The language is detected with langid (Lui and Baldwin 2012).
    """
    import py3langid

    texts = [" ".join(m.content for m in c.messages)[:1000] for c in conversations]
    return dict(Counter(py3langid.classify(text)[0] for text in texts).most_common())


def as_table(report: DataReport) -> RenderableType:
    """Lay the report out as a table for the terminal."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    counts = report.sources if len(report.sources) > 1 else []
    main_kept = f": {counts[0].kept:,} kept" if counts else ""
    table.add_row("source", f"{escape(report.source)} (recognised as {report.format}){main_kept}")
    for count in counts[1:]:
        table.add_row("mixed in", _mixed_in(count))
    table.add_row("rows", f"{report.rows:,} = {report.kept:,} kept + {_dropped(report.dropped)}")
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
    """Show examples for the terminal, with the supervised tokens on a green background."""
    shown: list[RenderableType] = []
    for number, example in enumerate(examples, 1):
        count = sum(example.supervised)
        text = Text(f"example {number}: {len(example.ids)} tokens, {count} supervised\n")
        for ids, supervised in _spans(example):
            decoded = template.decode(ids, special=True)
            text.append(decoded, style="black on green" if supervised else "dim")
        shown.append(text)
    return Group(*shown)


def _spans(example: Rendered) -> list[tuple[list[int], bool]]:
    """Split the ids into the longest spans that are supervised or not throughout."""
    spans: list[tuple[list[int], bool]] = []
    for token, supervised in zip(example.ids, example.supervised, strict=True):
        if not spans or spans[-1][1] != supervised:
            spans.append(([], supervised))
        spans[-1][0].append(token)
    return spans


def named_counts(counts: dict[str, int]) -> str:
    """Format counts for one line of text, such as `duplicate 3, empty_turn 1`."""
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _mixed_in(count: SourceCount) -> str:
    wanted = count.wanted or 0
    fewer = f", all that it has of the {wanted:,} wanted" if count.kept < wanted else ""
    recognised = f"{escape(count.source)} (recognised as {count.format})"
    return f"{recognised}: {count.kept:,} kept{fewer}"


def _dropped(counts: dict[str, int]) -> str:
    return f"{sum(counts.values()):,} dropped" + (f" ({named_counts(counts)})" if counts else "")
