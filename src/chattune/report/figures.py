"""What each figure of an evaluation means, and how its value is written for people."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chattune.evaluate.failures import FAILURES
from chattune.evaluate.intervals import Figure
from chattune.report.escaping import visible

# Below this number of samples, counts say more than percentages.
MANY = 200


@dataclass(frozen=True)
class Meaning:
    """A figure's title and definition, and the unit of its value; a rate is a share of samples."""

    title: str
    definition: str
    unit: str = ""
    is_rate: bool = False


_ANY_FAILURE = "Replies that show at least one of the failures."
_COMPARED = "At most 40 samples are compared, and 48 tokens of each reply. Chance gives 1 of 10."

MEANINGS = {
    "any_failure": Meaning("Any failure", _ANY_FAILURE, is_rate=True),
    "right": Meaning(
        "Gives the right answer",
        "Replies that have the words that their prompt requires, and none of those that it "
        "forbids, among the replies to prompts that require or forbid any.",
        is_rate=True,
    ),
    "chrf": Meaning(
        "Likeness to the reference (chrF)",
        "F-score of the character n-grams that a reply shares with its reference, from 0 to 1 "
        "(Popović 2015). A good reply may well be unlike the reference.",
    ),
    "word_f1": Meaning(
        "Words shared with the reference (F1)",
        "F1 score of the words that a reply shares with its reference, from 0 to 1, without their "
        "order (Rajpurkar et al. 2016).",
    ),
    "words": Meaning("Length", "Words of a reply, separated by white space.", "words"),
    "tokens": Meaning(
        "Length",
        "Tokens of a reply, with the token that ends it. Models with different tokenizers cannot "
        "be compared by it.",
        "tokens",
    ),
    "seq_rep_4": Meaning(
        "Repeated sequences of four words",
        "Share of the four-word sequences of a reply that occur earlier in it, from 0 to 1 "
        "(seq-rep-4, Welleck et al. 2020).",
    ),
    "distinct_1": Meaning(
        "Different words (distinct-1)",
        "Number of different words in all replies together, divided by the number of words "
        "(Li et al. 2016). It falls as replies get longer or more.",
    ),
    "distinct_2": Meaning(
        "Different pairs of words (distinct-2)",
        "The same as distinct-1, for pairs of neighbouring words.",
    ),
    "self_bleu": Meaning(
        "Likeness of the replies to each other (self-BLEU)",
        "Mean BLEU score of a reply with the other replies as its references (Zhu et al. 2018). It "
        "is high for a model that gives everybody the same answer.",
    ),
    "loss": Meaning(
        "Loss on the references",
        "Negative log-likelihood that the model gives to the reference replies, per token.",
        "nats per token",
    ),
    "nats": Meaning(
        "Negative log-likelihood of a reference",
        "Negative log-likelihood that the model gives to a whole reference reply.",
        "nats per reply",
    ),
    "perplexity": Meaning(
        "Perplexity of the references",
        "The exponential of the loss: the model is as unsure of the next token of a reference as "
        "if it had to choose among so many equally likely ones.",
    ),
    "bits_per_byte": Meaning(
        "Loss per byte of the references",
        "The loss in bits, divided by the bytes of the references instead of their tokens, so that "
        "models with different tokenizers can be compared.",
        "bits per byte",
    ),
    "own_prompt_first": Meaning(
        "Fits its own prompt best",
        "Replies that the model finds more likely after their own prompt than after nine others. "
        + _COMPARED,
        is_rate=True,
    ),
    "own_prompt_nats": Meaning(
        "Dependence of a reply on its prompt",
        "How much more likely a reply is after its own prompt than after nine others, on average. "
        "It is 0 for a model that does not read its prompt.",
        "nats per token",
    ),
    "own_reply_first": Meaning(
        "Prefers the reference",
        "References that the model finds more likely after their prompt than nine other "
        "references (hits@1, Dinan et al. 2019). " + _COMPARED,
        is_rate=True,
    ),
    "own_reply_nats": Meaning(
        "Preference for the reference",
        "How much more likely the reference is than nine others after the same prompt, on average.",
        "nats per token",
    ),
}

SECTIONS = {
    "failures": "Failures",
    "measures": "Length and variety",
    "agreement": "Agreement",
    "likelihood": "Likelihood",
    "dependence": "Dependence on the prompt",
}


def meaning(name: str) -> Meaning:
    """Return the meaning of a figure; every failure is a rate."""
    if name in MEANINGS:
        return MEANINGS[name]
    if name in FAILURES:
        return Meaning(FAILURES[name].title, _definition(name), is_rate=True)
    return Meaning(visible(name).replace("_", " ").capitalize(), "", is_rate=True)


def read(section: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """Return the figures of a section of scores.json; those without a value are left out.

    The interval of a figure that has none is nan.
    """
    ends: dict[str, Any] = {"low": math.nan, "high": math.nan}
    return {
        name: Figure(**ends | {key: number for key, number in row.items() if number is not None})
        for name, row in section.items()
        if row["value"] is not None
    }


def value(name: str, figure: Figure) -> str:
    """Return a figure's value for a table: a count of a total, a percentage, or a number."""
    if not meaning(name).is_rate:
        return number(figure.value)
    if figure.n >= MANY:
        return f"{figure.value * 100:.1f} %"
    return f"{round(figure.value * figure.n)} of {figure.n}"


def interval(name: str, figure: Figure) -> str:
    """Return a figure's 95 % interval in the unit of its value, or a dash if it has none."""
    if math.isnan(figure.low):
        return "–"
    if not meaning(name).is_rate:
        return f"{number(figure.low)} to {number(figure.high)}"
    if figure.n >= MANY:
        return f"{figure.low * 100:.1f} to {figure.high * 100:.1f} %"
    return f"{round(figure.low * figure.n)} to {round(figure.high * figure.n)}"


def change(name: str, figure: Figure) -> str:
    """Return a difference with its interval in brackets; that of a rate is in replies of 100."""
    is_rate = meaning(name).is_rate
    value, low, high = (
        _signed(f"{100 * n:z.1f}" if is_rate else number(n))
        for n in (figure.value, figure.low, figure.high)
    )
    return f"{value} ({low} to {high})"


def title(name: str) -> str:
    """Return a figure's title with its unit, if it has one."""
    found = meaning(name)
    return f"{found.title}, {found.unit}" if found.unit else found.title


def number(value: float) -> str:
    """Return a number with about three significant digits."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:z,.{digits}f}".replace("-", "−")


def probability(p: float) -> str:
    """Return a p-value as it is commonly written."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _definition(name: str) -> str:
    """Return a failure's definition, whose paragraphs are lines, as a description of replies."""
    text = inspect.cleandoc(FAILURES[name].definition).removeprefix("Find ")
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    return "\n".join(p[:1].upper() + p[1:] for p in paragraphs)


def _signed(text: str) -> str:
    """Return a number with its sign; zero has none."""
    text = text.replace("-", "−")
    return text if text.startswith("−") or not text.strip("0.") else f"+{text}"
