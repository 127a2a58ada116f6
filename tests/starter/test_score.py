"""The score counts what it says, on replies that are known."""

from pathlib import Path

import pytest

from chattune.chat import Chatbot
from chattune.device import find_device
from chattune.generate.scripted import ScriptedEngine
from chattune.models import load
from score import is_right, repeats, score


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Paris is the capital of France.", True),
        ("PARIS, in France!", True),
        ("Paris.", False),  # the second group is missing
        ("Parisian France", False),  # no whole word
        ("All-Paris in France", False),
        ("Paris in France, or London.", False),
    ],
)
def test_right_is_every_group_and_nothing_forbidden(reply: str, right: bool) -> None:
    assert is_right(reply, [["paris"], ["france", "french"]], ["london"]) is right


def test_a_4gram_that_comes_again_counts_each_time() -> None:
    assert repeats("a b c d a b c d") == (1, 5)
    assert repeats("one two three four five") == (0, 2)
    assert repeats("short") == (0, 0)


def test_a_chatbot_that_always_says_the_same(tiny_base: Path) -> None:
    loaded = load(tiny_base, find_device())
    said = "I cannot know if it will rain, a weather report can. User: and you?"
    tokens = [*loaded.template.words(said), *loaded.template.end_ids]
    bot = Chatbot(ScriptedEngine([tokens]), loaded.template, 128)
    found = score(bot, loaded, "development", [0])
    assert found["stopped"] == found["markers"] == 1
    assert 0 < found["right"] < 0.5
    assert found["repeated_4grams"] == 0
    assert found["prompts"] == 150
