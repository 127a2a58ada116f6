"""Names that tell evaluations apart."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison
from chattune.report.escaping import visible


def labels(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a name for each evaluation, no two of them alike.

    Evaluations with the same label get the decoding parameters in which they differ, or a number.
    """
    return _distinct([e.label for e in evaluations], [e.scores["decoding"] for e in evaluations])


def pair(comparison: Comparison) -> tuple[str, str]:
    """Return the names of both evaluations of a comparison, made different in the same way."""
    settings = {
        name.removeprefix("decoding."): values
        for name, values in comparison.settings.items()
        if name.startswith("decoding.")
    }
    decodings = [{name: values[side] for name, values in settings.items()} for side in (0, 1)]
    a, b = _distinct(comparison.names, decodings)
    return a, b


def quoted(label: str) -> str:
    """Return a label for a sentence: in quotation marks if it has several words."""
    return f"“{label}”" if " " in label else label


def decoding_text(decoding: Mapping[str, Any]) -> str:
    """Return decoding parameters in a line, such as `temperature 0.5, top_k 15`."""
    return ", ".join(f"{name} {value}" for name, value in decoding.items())


def _distinct(names: Sequence[str], decodings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names with the parameters that differ between namesakes, or else with numbers."""
    longer = []
    for name, mine in zip(names, decodings, strict=True):
        namesakes = [d for n, d in zip(names, decodings, strict=True) if n == name]
        differing = {k: v for k, v in mine.items() if any(d.get(k) != v for d in namesakes)}
        longer.append(visible(f"{name} ({decoding_text(differing)})" if differing else name))
    total, seen = Counter(longer), Counter[str]()
    distinct = []
    for name in longer:
        seen[name] += 1
        distinct.append(f"{name} ({seen[name]})" if total[name] > 1 else name)
    return distinct
