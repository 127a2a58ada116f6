"""Two evaluations beside each other: paired differences of their figures, and what differs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chattune.conversation import Message
from chattune.errors import DataError
from chattune.evaluate import Evaluation
from chattune.evaluate.failures import FAILURES
from chattune.evaluate.failures.repetition import seq_rep_4
from chattune.evaluate.intervals import Figure, difference, holm, mean, p_value, rate
from chattune.evaluate.scores import Judged, groups_by_prompt, has, part
from chattune.evaluate.verdicts import Verdicts
from chattune.run import Run, is_run

Value = Callable[[Judged], float | None]


@dataclass(frozen=True)
class Difference:
    """A figure of two evaluations on the prompts that they share.

    `difference` is b minus a. `p` is how likely a difference at least as large is by chance,
    corrected for the number of figures compared (Holm 1979).
    """

    section: str
    name: str
    a: Figure
    b: Figure
    difference: Figure
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two evaluations compared.

    `settings` maps what differs in their making to both values, and `verdicts` is what a judge
    prefers, if one was asked.
    """

    names: tuple[str, str]
    differences: list[Difference]
    settings: dict[str, tuple[Any, Any]]
    shared_prompts: int
    verdicts: Verdicts | None = None


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Compare two evaluations, prompt by prompt, on the prompts that both have.

    Raises DataError if they share no prompt.
    """
    shared = [
        prompt for prompt, opening in _openings(a).items() if _openings(b).get(prompt) == opening
    ]
    if not shared:
        raise DataError(
            f"compare {a.folder} {b.folder}: they have no prompt in common; evaluate both on the "
            "same --prompts"
        )
    differences = list(_differences(a, b, shared))
    corrected = holm([d.p for d in differences])
    return Comparison(
        (a.label, b.label),
        [replace(d, p=p) for d, p in zip(differences, corrected, strict=True)],
        _settings_that_differ(a, b),
        len(shared),
    )


def _openings(evaluation: Evaluation) -> dict[str, tuple[Message, ...]]:
    """Return the messages before the first reply of each prompt.

    Prompts of one name may differ, such as the held-out conversations of runs on different data.
    """
    return {j.sample.prompt: j.sample.messages for j in evaluation.judged if j.sample.turn == 1}


def _differences(a: Evaluation, b: Evaluation, shared: Sequence[str]) -> Iterator[Difference]:
    """Yield the difference of every figure that both evaluations have, not yet corrected.

    Every prompt counts once, however many replies it has.
    """
    for section, name, value, is_rate in _figures():
        if name in a.scores["not_measured"] or name in b.scores["not_measured"]:
            continue
        ours, theirs = (groups_by_prompt(e.judged, value) for e in (a, b))
        prompts = [p for p in shared if p in ours and p in theirs]
        if not prompts:
            continue
        values_a, values_b = ([[_mean(side[p])] for p in prompts] for side in (ours, theirs))
        figure = rate if is_rate else mean
        yield Difference(
            section,
            name,
            figure(values_a),
            figure(values_b),
            difference(values_b, values_a, is_rate=is_rate),
            p_value(values_b, values_a),
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figures() -> list[tuple[str, str, Value, bool]]:
    """Return each figure that single samples have: section, name, value, and if it is 0 or 1."""
    return [
        *(("failures", name, has(name), True) for name in FAILURES),
        ("measures", "words", lambda j: len(j.sample.reply.split()), False),
        ("measures", "seq_rep_4", lambda j: seq_rep_4(j.sample.reply), False),
        ("agreement", "right", lambda j: j.right, True),
        ("dependence", "own_prompt_first", part("own_prompt", "first"), True),
        ("dependence", "own_prompt_nats", part("own_prompt", "nats"), False),
        ("dependence", "own_reply_first", part("own_reply", "first"), True),
        ("likelihood", "nats", part("likelihood", "nats"), False),
    ]


def _settings_that_differ(a: Evaluation, b: Evaluation) -> dict[str, tuple[Any, Any]]:
    ours, theirs = (dict(_flat(_settings(e))) for e in (a, b))
    return {
        name: (ours.get(name), theirs.get(name))
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name)
    }


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    """Return what an evaluation was made with: model, decoding, and for a run recipe and data."""
    names = ("model", "decoding", "template", "prompts", "seeds", "engine")
    settings = {name: evaluation.scores[name] for name in names}
    place = evaluation.scores["model"]["name"]
    if evaluation.scores["model"]["kind"] == "run" and is_run(place):
        run = Run.open(place)
        settings |= {"recipe": run.recipe.model_dump(mode="json"), "data": run.facts["data"]}
    return settings


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
