"""What the data report needs, counted while conversations pass by."""

from collections import Counter
from dataclasses import asdict

from chattune.conversation import Conversation
from chattune.data.fit import Cuts
from chattune.data.reading import Reading
from chattune.data.report import DataReport, languages, length_quantiles
from chattune.template import Rendered

_MAX_EXAMPLES = 16
_LANGUAGE_SAMPLE = 500


class Tally:
    """What the report needs, counted while conversations pass by."""

    def __init__(self) -> None:
        self.lengths: Counter[int] = Counter()
        self.supervised = 0
        self.turns: Counter[int] = Counter()
        self.held_out: list[Conversation] = []
        self.trained: list[Conversation] = []
        self.validation = 0

    def add(self, conversation: Conversation, rendered: Rendered, held_out: bool) -> None:
        """Count one kept conversation."""
        self.lengths[len(rendered.ids)] += 1
        self.supervised += sum(rendered.supervised)
        self.turns[conversation.roles.count("assistant")] += 1
        self.validation += held_out
        if held_out and len(self.held_out) < _MAX_EXAMPLES:
            self.held_out.append(conversation)
        elif not held_out and len(self.trained) < _LANGUAGE_SAMPLE:
            self.trained.append(conversation)

    @property
    def examples(self) -> list[Conversation]:
        """Held-out conversations, or training ones where nothing is held out."""
        return self.held_out or self.trained[:_MAX_EXAMPLES]

    def report(
        self, source: str, reading: Reading, dropped: Counter[str], cuts: Cuts, key: str
    ) -> DataReport:
        """The report of all that was added."""
        lengths = list(self.lengths.elements())
        kept = len(lengths)
        return DataReport(
            source=source,
            format=reading.format,
            rows=reading.rows,
            kept=kept,
            dropped={reason: n for reason, n in sorted(dropped.items()) if n},
            train=kept - self.validation,
            validation=self.validation,
            tokens=sum(lengths),
            supervised_tokens=self.supervised,
            cut=asdict(cuts),
            turns=dict(sorted(self.turns.items())),
            length_quantiles=length_quantiles(lengths) if lengths else {},
            languages=languages(self.trained + self.held_out),
            fingerprint=key,
        )
