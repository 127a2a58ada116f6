"""The samples of evaluations arranged for reading: each prompt with all replies to it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from chattune.conversation import Message
from chattune.evaluate import Evaluation, Judged
from chattune.report.labels import labels

# What a page holds of samples, so that it stays below 3 MB with its charts and tables.
PAGE_BYTES = 2_200_000
_MARKUP_BYTES = 200  # around a reply


@dataclass(frozen=True)
class Part:
    """A part of a reply, and the failures whose spans cover it."""

    text: str
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """A reply with the name of the model that gave it."""

    label: str
    judged: Judged

    @property
    def parts(self) -> list[Part]:
        """The reply, cut wherever a span of a failure begins or ends."""
        return parts(self.judged)


@dataclass(frozen=True)
class Turn:
    """A user's message and the replies of all models to it."""

    question: str
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class Talk:
    """A prompt under one seed: what was said before, and by number the turns that were answered."""

    prompt: str
    kind: str
    seed: int
    before: tuple[Message, ...]
    turns: dict[int, Turn] = field(default_factory=dict)

    @property
    def judged(self) -> list[Judged]:
        """The replies of all turns and models."""
        return [answer.judged for turn in self.turns.values() for answer in turn.answers]

    @property
    def failures(self) -> list[str]:
        """The names of the failures that any of the replies shows."""
        return list(dict.fromkeys(name for j in self.judged for name in j.failures))

    @property
    def reference(self) -> str | None:
        """Somebody's reply to the last message, if there is one."""
        return next((j.sample.reference for j in self.judged if j.sample.reference), None)

    @property
    def required(self) -> list[str]:
        """The words that a right reply has: of each item one of the alternatives."""
        groups = next((j.sample.required for j in self.judged if j.sample.required), ())
        return [" or ".join(group) for group in groups]

    @property
    def size(self) -> int:
        """About how many bytes it takes on a page."""
        texts = [turn.question for turn in self.turns.values()] + [
            j.sample.reply for j in self.judged
        ]
        return sum(len(escape(text).encode("utf-8", "replace")) + _MARKUP_BYTES for text in texts)


def talks(evaluations: Sequence[Evaluation]) -> list[Talk]:
    """Return all samples by prompt and seed, each with the replies of every evaluation.

    Prompts are the same if their messages are: the third held-out conversation of one run need not
    be that of another.
    """
    found: dict[tuple[str, int, tuple[Message, ...]], Talk] = {}
    for label, evaluation in zip(labels(evaluations), evaluations, strict=True):
        openings = {
            (j.sample.prompt, j.sample.seed): j.sample.messages
            for j in evaluation.judged
            if j.sample.turn == 1
        }
        for judged in evaluation.judged:
            sample = judged.sample
            opening = openings.get((sample.prompt, sample.seed), sample.messages)
            key = sample.prompt, sample.seed, opening
            talk = found.setdefault(
                key, Talk(sample.prompt, sample.kind, sample.seed, opening[:-1])
            )
            turn = talk.turns.setdefault(sample.turn, Turn(sample.question))
            turn.answers.append(Answer(label, judged))
    return list(found.values())


def within(all_talks: Sequence[Talk], size: int) -> list[Talk]:
    """Return talks that together fit into `size` bytes, in their order.

    Where not all do, those with failures are preferred.
    """
    chosen: set[int] = set()
    for index in sorted(range(len(all_talks)), key=lambda i: not all_talks[i].failures):
        size -= all_talks[index].size
        if size < 0:
            break
        chosen.add(index)
    return [talk for index, talk in enumerate(all_talks) if index in chosen]


def parts(judged: Judged) -> list[Part]:
    """Cut a reply wherever a span of a failure begins or ends."""
    reply = judged.sample.reply
    spans = [(name, *span) for name, found in judged.failures.items() for span in found]
    borders = {0, len(reply)} | {min(max(p, 0), len(reply)) for _, *span in spans for p in span}
    return [
        Part(
            reply[start:end],
            tuple(dict.fromkeys(n for n, a, b in spans if a <= start and end <= b)),
        )
        for start, end in pairwise(sorted(borders))
    ]


def failing(all_talks: Sequence[Talk]) -> Iterator[tuple[Talk, Turn, Answer]]:
    """Yield the replies that show a failure, each with where it belongs."""
    for talk in all_talks:
        for turn in talk.turns.values():
            yield from ((talk, turn, a) for a in turn.answers if a.judged.failures)
