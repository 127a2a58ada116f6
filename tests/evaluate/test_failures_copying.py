"""Verbatim copies of training replies."""

import random
import time

import pytest

from chattune.conversation import Message
from chattune.evaluate.failures.copying import RUN, TrainingReplies, copying
from chattune.evaluate.sample import Sample

TRAINING = [
    "Rabbits eat mostly hay. They also like fresh green leaves, and they need clean water daily.",
    "Lay the brick on a bed of mortar, tap it with the handle of your trowel, and check the level.",
    "The old lighthouse warns ships of rocks.",
    "Hello! How can I help you today?",
    "I am fine, thank you.",
    "Yes.",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
    "If there is anything else that I can do for you, please let me know about it.",
    "兔子主要吃干草，也喜欢新鲜的绿叶，而且它们每天都需要干净的水，还要有足够的地方跑来跑去。",
]


def found(reply: str, prompt: str = "What do they need?") -> list[str]:
    sample = Sample("set/1", "general", 1, 0, (Message("user", prompt),), reply)
    return [reply[a:b] for a, b in copying([sample], TrainingReplies(TRAINING))[0]]


@pytest.mark.parametrize(
    ("reply", "copied"),
    [
        (TRAINING[0], [TRAINING[0][:-1]]),
        (TRAINING[0].upper(), [TRAINING[0].upper()[:-1]]),
        (
            "Yes, rabbits eat mostly hay; they also like fresh green leaves, and they need love.",
            ["rabbits eat mostly hay; they also like fresh green leaves, and they need"],
        ),
        (
            "First, lay the brick on a bed of mortar, tap it with the handle of a hammer.",
            ["lay the brick on a bed of mortar, tap it with the handle of"],
        ),
        (
            f"{TRAINING[1]} By the way: {TRAINING[0]}",
            [TRAINING[1][:-1], TRAINING[0][:-1]],
        ),
        (TRAINING[2], [TRAINING[2][:-1]]),
        ("The old lighthouse warns ships of rocks", ["The old lighthouse warns ships of rocks"]),
        (TRAINING[8], [TRAINING[8][:-1]]),
    ],
)
def test_copied_words_are_found(reply: str, copied: list[str]) -> None:
    assert found(reply) == copied


@pytest.mark.parametrize(
    "reply",
    [
        "Rabbits need hay, water and company.",
        "Rabbits eat mostly hay. They also like fresh green",  # nine words
        "They need clean water daily, and rabbits eat mostly hay. They also like company.",
        "The old lighthouse warns ships of rocks and of sandbanks.",  # not the whole reply
        "Hello! How can I help you today?",  # a stock phrase
        "I am fine, thank you.",
        "Yes.",
        "",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
        "If there is anything else that I can do for you, please let me know about it.",
        "兔子主要吃干草，也喜欢新鲜的胡萝卜。",
    ],
)
def test_other_words_are_not_found(reply: str) -> None:
    assert found(reply) == []


def test_what_the_prompt_has_too_is_not_copied() -> None:
    assert found(TRAINING[0], f"Please correct this: {TRAINING[0]}") == []


def test_a_run_has_to_be_in_one_reply() -> None:
    words = TRAINING[1].rstrip(".").split()
    halves = TrainingReplies([" ".join(words[:11]), " ".join(words[11:])])
    assert halves.copied(TRAINING[1]) == []
    assert TrainingReplies([" ".join(words[: RUN + 1])]).copied(TRAINING[1]) != []


def test_nothing_is_copied_from_nothing() -> None:
    assert TrainingReplies([]).copied(TRAINING[0]) == []
    assert TrainingReplies(["", "no"]).copied("") == []


def test_many_replies_are_indexed_in_little_time() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(5000)]
    replies = [" ".join(rng.choices(vocabulary, k=60)) for _ in range(5000)]
    start = time.process_time()
    index = TrainingReplies(reply for reply in replies)
    assert time.process_time() - start < 10
    assert all(index.copied(reply) for reply in replies[::100])
    assert not index.copied(" ".join(rng.choices(vocabulary, k=60)))
