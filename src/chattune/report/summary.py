"""The summary of one evaluation in words, for a person who has never trained a model."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from chattune.evaluate import Evaluation
from chattune.evaluate.intervals import Figure
from chattune.report.figures import interval, meaning, number, read, value
from chattune.report.wording import (
    count,
    does,
    extremes,
    listed,
    sentence,
    share_with_interval,
)

CAVEAT = (
    "These figures count what goes wrong. They do not say which model is better: a reply without "
    "any failure may still be dull or untrue."
)
ABOUT_INTERVALS = (
    "A 95 % interval says how far a figure may be from that of many more prompts of the same "
    "kinds; the fewer the samples, the wider it is."
)
_OPENING_WORDS = 4
# Kinds of prompts of the set `general`, and what has happened since the fact was told.
_RECALL = {"recall": "", "recall-after-change": ", after a change of subject,"}

Parts = Mapping[str, Mapping[str, Any]]


def sentences(evaluation: Evaluation) -> list[str]:
    """Return the summary of an evaluation, one sentence for each thing that its figures say.

    CAVEAT belongs below it.
    """
    scores = evaluation.scores
    failures = read(scores.get("failures", {}))
    return [
        _size(evaluation),
        *_stopping(failures),
        *_failing(failures),
        *_openings(evaluation),
        *_where(scores.get("by_turn", {}), lambda turn: f"in turn {turn}"),
        *_where(scores.get("by_kind", {}), _on_kind),
        *_recall(scores.get("by_kind", {})),
        *_quality(scores),
        *_missing(scores),
    ]


def _size(evaluation: Evaluation) -> str:
    judged = evaluation.judged
    prompts = len({j.sample.prompt for j in judged})
    verb = "was" if len(judged) == 1 else "were"
    return (
        f"{count(len(judged), 'reply', 'replies')} to {count(prompts, 'prompt')} {verb} judged; "
        "in brackets are 95 % intervals."
    )


def _stopping(failures: Mapping[str, Figure]) -> Iterator[str]:
    """Yield how often the model stops, which people ask for rather than for the failure."""
    if figure := failures.get("not_stopping"):
        stops = Figure(1 - figure.value, 1 - figure.high, 1 - figure.low, figure.n)
        yield f"It stops by itself in {share_with_interval('not_stopping', stops)}."


def _failing(failures: Mapping[str, Figure]) -> Iterator[str]:
    """Yield a sentence for each failure that occurs, most frequent first, and one on the rest."""
    others = {name: figure for name, figure in failures.items() if name != "not_stopping"}
    absent = [name for name, figure in others.items() if not figure.value]
    for name in sorted(others.keys() - absent, key=lambda name: -others[name].value):
        yield f"It {does(name)} in {share_with_interval(name, others[name])}."
    if absent:
        highest = max(absent, key=lambda name: others[name].high)
        titles = ", ".join(f"“{meaning(name).title}”" for name in absent)
        yield f"Seen in {share_with_interval(highest, others[highest])}: {titles}."


def _openings(evaluation: Evaluation) -> Iterator[str]:
    """Yield what the replies that answer with a template begin with, if most begin alike."""
    replies = [j.sample.reply for j in evaluation.judged if "template" in j.failures]
    openings = Counter(" ".join(reply.split()[:_OPENING_WORDS]) for reply in replies)
    for opening, times in openings.most_common(1):
        if times > 1 and 2 * times >= len(replies):
            of = f"All {times}" if times == len(replies) else f"{times} of the {len(replies)}"
            yield f"{of} replies that answer with a template begin with “{opening} …”."


def _where(parts: Parts, place: Callable[[str], str]) -> Iterator[str]:
    """Yield each rate that is clearly higher for some turns, or kinds of prompts, than others."""
    figures = {part: read(section) for part, section in parts.items()}
    for name in dict.fromkeys(name for section in figures.values() for name in section):
        having = {part: section[name] for part, section in figures.items() if name in section}
        if found := extremes(having):
            low, high = found
            yield (
                f"It {does(name)} more often {place(high)} ({value(name, having[high])}) than "
                f"{place(low)} ({value(name, having[low])})."
            )


def _quality(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known about the replies apart from their failures."""
    sections = ("measures", "agreement", "dependence", "likelihood")
    figures = {n: f for section in sections for n, f in read(scores.get(section, {})).items()}
    if words := figures.get("words"):
        yield f"A reply has {number(words.value)} words on average."
    if right := figures.get("right"):
        nouns = ("reply that can be checked", "replies that can be checked")
        yield f"It gives the right answer in {share_with_interval('right', right, *nouns)}."
    if own := figures.get("own_prompt_first"):
        nouns = ("reply that was compared", "replies that were compared")
        yield (
            f"In {share_with_interval('own_prompt_first', own, *nouns)}, it fits its own prompt "
            f"better than nine other prompts; chance would give {own.n / 10:.0f}."
        )
    if perplexity := figures.get("perplexity"):
        yield (
            "It is as unsure of the next token of a reference reply as if it had to choose among "
            f"{number(perplexity.value)} (perplexity; {interval('perplexity', perplexity)})."
        )


def _recall(by_kind: Parts) -> Iterator[str]:
    """Yield how often a fact of the first turn is remembered in the third one.

    `by_kind` has the figures of the prompt set `general`, of which two kinds ask for it.
    """
    for kind, when in _RECALL.items():
        if right := read(by_kind.get(kind, {})).get("right"):
            nouns = ("conversation", "conversations")
            yield (
                f"It remembers what it was told two turns before{when} in "
                f"{share_with_interval('right', right, *nouns)}."
            )


def _missing(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was not measured, and which prompts were left out, with the reasons."""
    for reason, names in _by_reason(scores.get("not_measured", {})).items():
        titles = listed([f"“{meaning(name).title}”" for name in names])
        yield sentence(f"Not measured: {titles}, because {reason}")
    for reason, prompts in _by_reason(scores.get("left_out", {})).items():
        more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
        yield sentence(f"Left out: {prompts[0]}{more}, because {reason}")


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return by_reason


def _on_kind(kind: str) -> str:
    return f"on prompts of the kind “{kind}”" if kind else "on prompts without a kind"
