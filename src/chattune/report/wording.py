"""Pieces of the sentences of a report: what a model does, shares, counts and lists."""

from collections.abc import Mapping, Sequence

from chattune.evaluate.intervals import Figure
from chattune.report.figures import MANY, interval, meaning


def does(name: str) -> str:
    """Return what a model does in a reply that counts for a rate, such as `repeats itself`.

    Titles of rates are verb phrases.
    """
    if name == "not_stopping":
        return "runs on until it is cut off"  # "does not stop more often" says something else
    title = meaning(name).title
    return title[:1].lower() + title[1:]


def share(figure: Figure, singular: str = "reply", plural: str = "replies") -> str:
    """Return a rate in words, such as `12 of 80 replies` or `3.1 % of 500 replies`."""
    hits = round(figure.value * figure.n)
    if figure.n == 1:
        return f"the only {singular}" if hits else f"none of 1 {singular}"
    if hits == 0:
        return f"none of {figure.n:,} {plural}"
    if hits == figure.n:
        return f"all {figure.n:,} {plural}"
    if figure.n >= MANY:
        return f"{figure.value * 100:.1f} % of {figure.n:,} {plural}"
    return f"{hits} of {figure.n} {plural}"


def share_with_interval(name: str, figure: Figure, *nouns: str) -> str:
    """Return a rate in words, with its 95 % interval in brackets.

    `nouns` are the singular and the plural of a sample.
    """
    return f"{share(figure, *nouns)} ({interval(name, figure)})"


def count(n: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as `1 prompt` or `1,200 prompts`."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Join names with commas, and the last one with a word."""
    *some, final = names
    return f"{', '.join(some)} {last} {final}" if some else final


def sentence(text: str) -> str:
    """Return a text that begins with a capital letter and ends with a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def extremes(figures: Mapping[str, Figure]) -> tuple[str, str] | None:
    """Return the keys of the lowest and the highest value, if their intervals do not overlap."""
    low = min(figures, key=lambda key: figures[key].value)
    high = max(figures, key=lambda key: figures[key].value)
    return (low, high) if figures[low].high < figures[high].low else None
