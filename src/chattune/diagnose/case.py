"""The case that a diagnosis looks at, and the findings that it makes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from chattune.conversation import Conversation
from chattune.evaluate import Evaluation
from chattune.evaluate.intervals import Figure
from chattune.evaluate.sample import Sample
from chattune.run import METRICS, Run
from chattune.template import IGNORED_LABEL, Template

_REPLIES = 2000  # of the training data that are looked at


@dataclass(frozen=True)
class Finding:
    """A cause of failures: the evidence for it, where it lies, and what helps.

    `place` is the recipe field or the decoding parameter that the remedy changes. `command` applies
    the remedy, where a single command does.
    """

    cause: str
    title: str
    evidence: list[str]
    place: str
    remedy: str
    command: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the finding as a dictionary that can be written as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A run with its evaluation, its data, and a way to answer its prompts otherwise.

    `rows` are the labels of its training rows, and `conversations` the text of the conversations.
    `try_decoding` evaluates the same prompts under changed decoding parameters.
    """

    run: Run
    evaluation: Evaluation
    template: Template
    rows: Sequence[Sequence[int]]
    conversations: Sequence[Conversation]
    try_decoding: Callable[[Mapping[str, Any]], Evaluation]

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        path = self.run.folder / METRICS
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    @cached_property
    def replies(self) -> list[Sample]:
        """Replies of the training data with what stands before each; at most 2,000, spread evenly.

        They are samples, so that the detectors of failures can look at them.
        """
        found = [
            Sample(f"training/{number}", "", turn, 0, messages[:i], messages[i].content)
            for number, messages in enumerate(c.messages for c in self.conversations)
            for turn, i in enumerate(
                (i for i, m in enumerate(messages) if m.role == "assistant"), start=1
            )
        ]
        return found[:: max(1, -(-len(found) // _REPLIES))]

    @property
    def decoding(self) -> dict[str, Any]:
        """The decoding parameters of the evaluation."""
        parameters: dict[str, Any] = self.evaluation.scores["decoding"]
        return parameters

    def rate(self, failure: str) -> Figure | None:
        """Return how often the evaluation's replies show a failure; None if it was not measured."""
        figure = self.evaluation.scores["failures"].get(failure)
        return None if figure is None else Figure(**figure)

    def measured(self, failure: str, words: str) -> list[str]:
        """Return a line of evidence on a failure of the replies, or none if it was not measured.

        `words` say what the replies do, such as "do not end by themselves".
        """
        figure = self.rate(failure)
        if figure is None:
            return []
        return [
            f"{round(figure.value * figure.n)} of {figure.n} replies {words} "
            f"({figure.low:.0%} to {figure.high:.0%})"
        ]


def supervised(label: int) -> bool:
    """Return whether the loss covers a token with this label."""
    return label != IGNORED_LABEL
