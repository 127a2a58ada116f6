"""The figures of an evaluation, computed from its judged samples."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from chattune.evaluate.agreement import chrf, is_right, word_f1
from chattune.evaluate.intervals import Figure, mean, rate, ratio
from chattune.evaluate.sample import Sample

Scores = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """A sample with what was found out about its reply.

    `failures` maps the name of each failure that the reply shows to the spans that show it, in
    characters. `likelihood` has the nats and tokens of the reference, and `own_prompt` and
    `own_reply` the comparisons with rivals, for the samples where they were measured.
    """

    sample: Sample
    failures: Mapping[str, Sequence[tuple[int, int]]]
    likelihood: Mapping[str, float] | None = None
    own_prompt: Mapping[str, float] | None = None
    own_reply: Mapping[str, float] | None = None

    @property
    def right(self) -> bool | None:
        """True if the reply has the required words and no forbidden one; None without any."""
        return is_right(self.sample)

    def to_json(self) -> dict[str, Any]:
        """Return the row of samples.jsonl."""
        found = {name: getattr(self, name) for name in ("likelihood", "own_prompt", "own_reply")}
        return {
            **self.sample.to_json(),
            "right": self.right,
            "failures": self.failures,
            **{name: value for name, value in found.items() if value is not None},
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Build a judged sample from a row of samples.jsonl."""
        own = ("failures", "likelihood", "own_prompt", "own_reply")
        judged = {name: row[name] for name in own if name in row}
        sample = {name: value for name, value in row.items() if name not in (*own, "right")}
        return cls(Sample.from_json(sample), **judged)


def score(judged: Sequence[Judged], failures: Sequence[str]) -> Scores:
    """Return the figures of an evaluation, by section and name, each with its 95 % interval.

    `failures` are the names of those that could be measured. The sections are failures, their rates
    by turn and by kind of prompt, measures of length and variety, agreement with references and
    required words, likelihood of the references, and dependence of replies on their prompts.
    Figures for which no sample has what they need are left out.
    """
    scores: Scores = {
        "failures": _failure_rates(judged, failures),
        "measures": _measures(judged),
        "agreement": _agreement(judged),
        "likelihood": _likelihood(judged),
        "dependence": _dependence(judged),
        "by_turn": _by(judged, failures, lambda j: f"{j.sample.turn}"),
        "by_kind": _by(judged, failures, lambda j: j.sample.kind),
    }
    return {section: figures for section, figures in scores.items() if figures}


def groups_by_prompt(
    judged: Iterable[Judged], value: Callable[[Judged], float | None]
) -> dict[str, list[float]]:
    """Return the values of all samples that have one, in a list for each prompt."""
    by_prompt: dict[str, list[float]] = {}
    for sample in judged:
        if (number := value(sample)) is not None:
            by_prompt.setdefault(sample.sample.prompt, []).append(float(number))
    return by_prompt


def groups(judged: Iterable[Judged], value: Callable[[Judged], float | None]) -> list[list[float]]:
    """Return the values of all samples that have one, grouped by their prompt."""
    return list(groups_by_prompt(judged, value).values())


def has(failure: str) -> Callable[[Judged], float | None]:
    """Return a function that says whether a judged sample shows a failure, as 1 or 0."""
    return lambda judged: float(failure in judged.failures)


def part(measure: str, field: str) -> Callable[[Judged], float | None]:
    """Return a function that reads a field of a measure, such as the `nats` of `own_prompt`.

    It returns None for a judged sample for which the measure was not taken.
    """

    def read(judged: Judged) -> float | None:
        measured: Mapping[str, float] | None = getattr(judged, measure)
        return None if measured is None else measured[field]

    return read


def _failure_rates(judged: Sequence[Judged], failures: Sequence[str]) -> Scores:
    return {name: asdict(rate(groups(judged, has(name)))) for name in failures}


def _by(judged: Sequence[Judged], failures: Sequence[str], key: Callable[[Judged], str]) -> Scores:
    """Return the failure rates, and the share of right replies, of each value of `key`."""
    values = dict.fromkeys(map(key, judged))
    if len(values) < 2:
        return {}
    found = {}
    for value in values:
        some = [j for j in judged if key(j) == value]
        found[value] = _failure_rates(some, failures) | _right(some)
    return found


def _right(judged: Sequence[Judged]) -> Scores:
    right = groups(judged, lambda j: j.right)
    return {"right": asdict(rate(right))} if right else {}


def _measures(judged: Sequence[Judged]) -> Scores:
    from chattune.evaluate.diversity import distinct, self_bleu
    from chattune.evaluate.failures.repetition import seq_rep_4

    replies = [j.sample.reply for j in judged]
    figures = {
        "words": mean(groups(judged, lambda j: len(j.sample.reply.split()))),
        "seq_rep_4": mean(groups(judged, lambda j: seq_rep_4(j.sample.reply))),
    }
    if any(j.sample.tokens is not None for j in judged):
        figures["tokens"] = mean(groups(judged, lambda j: j.sample.tokens))
    # These are properties of all replies together, so no prompt has a value of its own.
    whole = {
        "distinct_1": distinct(replies, 1),
        "distinct_2": distinct(replies, 2),
        "self_bleu": self_bleu(replies),
    }
    return {name: asdict(figure) for name, figure in figures.items()} | {
        name: {"value": value, "low": None, "high": None, "n": len(replies)}
        for name, value in whole.items()
    }


def _agreement(judged: Sequence[Judged]) -> Scores:
    figures = _right(judged)
    for name, measure in (("chrf", chrf), ("word_f1", word_f1)):
        if values := groups(judged, _beside_reference(measure)):
            figures[name] = asdict(mean(values))
    return figures


def _beside_reference(measure: Callable[[str, str], float]) -> Callable[[Judged], float | None]:
    def value(judged: Judged) -> float | None:
        reference = judged.sample.reference
        return None if reference is None else measure(judged.sample.reply, reference)

    return value


def _likelihood(judged: Sequence[Judged]) -> Scores:
    """Return loss, perplexity and bits per byte of the references, each reference counted once."""
    rows = {j.sample.prompt: j.likelihood for j in judged if j.likelihood is not None}
    if not rows:
        return {}

    def column(name: str) -> list[float]:
        return [row[name] for row in rows.values()]

    loss = ratio(column("nats"), column("tokens"))
    bits = ratio([nats / math.log(2) for nats in column("text_nats")], column("bytes"))
    perplexity = Figure(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high), loss.n)
    figures = {"loss": loss, "perplexity": perplexity, "bits_per_byte": bits}
    return {name: asdict(figure) for name, figure in figures.items()}


def _dependence(judged: Sequence[Judged]) -> Scores:
    figures: Scores = {}
    for name in ("own_prompt", "own_reply"):
        first, nats = (groups(judged, part(name, field)) for field in ("first", "nats"))
        if first:
            figures[f"{name}_first"] = asdict(rate(first))
            figures[f"{name}_nats"] = asdict(mean(nats))
    return figures
