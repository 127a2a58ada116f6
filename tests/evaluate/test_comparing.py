"""Two evaluations beside each other, on made-up samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chattune.conversation import Message
from chattune.errors import DataError
from chattune.evaluate import Evaluation, Judged, Sample
from chattune.evaluate.comparing import compare
from chattune.evaluate.scores import score


def evaluation(label: str, failing: int, prompts: range = range(40), **settings: Any) -> Evaluation:
    """Make an evaluation whose first `failing` replies were cut off."""
    judged = [
        Judged(
            Sample(f"set/{i}", "", 1, 0, (Message("user", f"{i}?"),), f"{i}", 2, i >= failing),
            {"not_stopping": [(0, 1)]} if i < failing else {},
        )
        for i in prompts
    ]
    facts = {
        "label": label,
        "model": {"name": label, "kind": "model"},
        "decoding": {"temperature": settings.get("temperature", 0.9)},
        "template": "a",
        "prompts": {},
        "seeds": 1,
        "engine": "fast",
        "not_measured": {"copying": "there is no training data"},
    }
    return Evaluation(Path(label), facts | score(judged, ["not_stopping"]), judged)


def test_a_difference_is_found_and_what_differs_is_named() -> None:
    found = compare(evaluation("a", 30), evaluation("b", 5, temperature=0.1))
    assert found.names == ("a", "b")
    assert found.shared_prompts == 40
    assert found.settings["decoding.temperature"] == (0.9, 0.1)
    assert "seeds" not in found.settings
    by_name = {d.name: d for d in found.differences}
    stopping = by_name["not_stopping"]
    assert (stopping.a.value, stopping.b.value) == (0.75, 0.125)
    assert stopping.difference.value == -0.625
    assert stopping.difference.high < -0.4
    assert stopping.p < 0.01
    assert "copying" not in by_name
    assert by_name["echo"].p == 1


def test_only_shared_prompts_are_compared() -> None:
    found = compare(evaluation("a", 0, range(20)), evaluation("b", 15, range(10, 30)))
    (stopping,) = (d for d in found.differences if d.name == "not_stopping")
    assert found.shared_prompts == stopping.a.n == 10
    assert stopping.b.value == 0.5


def test_prompts_of_one_name_with_other_words_are_not_compared() -> None:
    a, b = evaluation("a", 0, range(5)), evaluation("b", 0, range(5))
    other = replace(b.judged[0].sample, messages=(Message("user", "Other words?"),))
    b.judged[0] = replace(b.judged[0], sample=other)
    assert compare(a, b).shared_prompts == 4


def test_evaluations_without_a_common_prompt_are_refused() -> None:
    with pytest.raises(DataError, match="no prompt in common"):
        compare(evaluation("a", 0, range(5)), evaluation("b", 0, range(5, 9)))
