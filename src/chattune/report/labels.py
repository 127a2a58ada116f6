"""Names that tell evaluations apart."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chattune.evaluate import Evaluation
from chattune.evaluate.comparing import Comparison


def labels(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a name for each evaluation, no two of them alike.

    Evaluations with the same label get the decoding parameters in which they differ, or a number.
    """
    names = [evaluation.label for evaluation in evaluations]
    decodings = [evaluation.scores["decoding"] for evaluation in evaluations]
    return _numbered(
        [
            _with_settings(
                name, decoding, [d for n, d in zip(names, decodings, strict=True) if n == name]
            )
            for name, decoding in zip(names, decodings, strict=True)
        ]
    )


def pair(comparison: Comparison) -> tuple[str, str]:
    """Return the names of both evaluations of a comparison, made different in the same way."""
    a, b = comparison.names
    if a != b:
        return a, b
    settings = {
        name.removeprefix("decoding."): values
        for name, values in comparison.settings.items()
        if name.startswith("decoding.")
    }
    both = [{name: values[side] for name, values in settings.items()} for side in (0, 1)]
    first, second = _numbered([_with_settings(a, mine, both) for mine in both])
    return first, second


def quoted(label: str) -> str:
    """Return a label for a sentence: in quotation marks if it has several words."""
    return f"“{label}”" if " " in label else label


def decoding_text(decoding: Mapping[str, Any]) -> str:
    """Return decoding parameters in a line, such as `temperature 0.5, top_k 15`."""
    return ", ".join(f"{name} {value}" for name, value in decoding.items())


def _with_settings(
    name: str, mine: Mapping[str, Any], namesakes: Sequence[Mapping[str, Any]]
) -> str:
    """Add to a name the parameters that are not the same in all decodings of that name."""
    differing = {
        key: value for key, value in mine.items() if any(d.get(key) != value for d in namesakes)
    }
    return f"{name} ({decoding_text(differing)})" if differing else name


def _numbered(names: Sequence[str]) -> list[str]:
    """Add a number to each name that occurs more than once."""
    total, seen = Counter(names), Counter[str]()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(f"{name} ({seen[name]})" if total[name] > 1 else name)
    return numbered
