"""The table of failures, find_failures(), and what holds for every detector on any text."""

import importlib.util
import random
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.conversation import Message
from chattune.evaluate.failures import FAILURES, TrainingReplies, find_failures, unmeasured
from chattune.evaluate.sample import Sample

NAMES = ["not_stopping", "unfinished", "self_talk", "repetition", "echo", "template"]
NAMES += ["copying", "empty", "language"]
NO_TRAINING = TrainingReplies([])


def sample(
    reply: str, prompt: str = "What do cows eat?", name: str = "", stopped: bool | None = True
) -> Sample:
    messages = (Message("user", prompt),)
    return Sample(f"set/{name or prompt}", "general", 1, 0, messages, reply, stopped=stopped)


def names(found: Sequence[dict[str, list[tuple[int, int]]]]) -> list[list[str]]:
    return [list(of_sample) for of_sample in found]


# --- the table ---------------------------------------------------------------------------------


def test_every_failure_has_a_title_and_a_definition() -> None:
    assert list(FAILURES) == NAMES
    assert [failure.name for failure in FAILURES.values()] == NAMES
    assert len({failure.title for failure in FAILURES.values()}) == len(NAMES)
    assert all(f.definition.startswith("Find ") for f in FAILURES.values())


# --- find_failures -----------------------------------------------------------------------------


def test_a_good_reply_has_no_failure() -> None:
    assert find_failures([sample("Cows eat grass and hay.")], NO_TRAINING) == [{}]


def test_each_failure_is_found_in_its_reply() -> None:
    training = TrainingReplies(
        ["A cow chews the grass twice, once at noon and once at night, they say."]
    )
    samples = [
        sample("Cows eat grass and", stopped=False),
        sample("Cows eat grass.\nUser: And pigs?", "What do cows have for lunch?"),
        sample("They eat a lot of grass. They eat a lot of grass. They eat a lot of grass."),
        sample("What do cows eat?"),
        sample("My favourite colour has always been green.", "Who was Caesar?"),
        sample("My favourite colour has always been green.", "Why do leaves fall?"),
        sample("A cow chews the grass twice, once at noon and once at night, I think."),
        sample("..."),
        sample("Kühe fressen vor allem frisches Gras, und im Winter bekommen sie viel Heu."),
    ]
    assert names(find_failures(samples, training)) == [
        ["not_stopping", "unfinished"],
        ["self_talk"],
        ["repetition"],
        ["echo"],
        ["template"],
        ["template"],
        ["copying"],
        ["empty"],
        ["language"],
    ]


def test_what_cannot_be_measured_is_left_out() -> None:
    samples = [sample("Cows eat grass and", name="1", stopped=None)]
    assert names(find_failures(samples)) == [["unfinished"]]
    assert find_failures([]) == []


# --- unmeasured --------------------------------------------------------------------------------


def test_unmeasured_names_what_is_missing() -> None:
    assert unmeasured([sample("a", name="1"), sample("b", name="2")], NO_TRAINING) == {}
    assert unmeasured([sample("a", stopped=None)]) == {
        "not_stopping": "no sample says whether the model ended its reply",
        "template": "only replies to several prompts can be compared",
        "copying": "the training replies are not known",
    }


def test_languages_are_unmeasured_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    samples = [sample("Кошки.", name="1"), sample("b", name="2")]
    assert unmeasured(samples, NO_TRAINING) == {
        "language": "the package py3langid is not installed"
    }
    assert names(find_failures(samples, NO_TRAINING)) == [[], []]


# --- properties --------------------------------------------------------------------------------

# Pieces from which broken replies are made, so that detectors find something to look at.
PIECES = st.sampled_from(
    [
        *("### Human:", "User: ", "Q:", "A:", "user\n", "<|im_start|>", "[INST]", "```", "\n", " "),
        *("1. ", "- ", "| a | b |", "**", "(", '"', "What do cows eat?", "They eat. ", "e.g.", "#"),
        *("the ", "x = 1;\n", "https://a.b/", "😀", "\x00", "\u202e", "\ud800", "שלום", "你好。"),
        *("ไทย", "İ", "...", "\r\n", "?\n", "!\n", "and "),
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join))


@settings(max_examples=150, deadline=None)
@given(
    replies=st.lists(
        st.tuples(TEXTS, st.sampled_from([True, False, None])), min_size=1, max_size=4
    ),
    prompt=TEXTS,
)
def test_spans_of_any_text_are_inside_in_order_and_apart(
    replies: list[tuple[str, bool | None]], prompt: str
) -> None:
    samples = [sample(r, prompt + str(i), f"{i}", s) for i, (r, s) in enumerate(replies)]
    training = TrainingReplies([reply for reply, _ in replies])
    found = find_failures(samples, training)
    assert len(found) == len(samples)
    for of_sample, (reply, _) in zip(found, replies, strict=True):
        for name, spans in of_sample.items():
            assert name in FAILURES
            assert spans
            positions = [position for span in spans for position in span]
            assert positions == sorted(positions)
            assert 0 <= positions[0] <= positions[-1] <= len(reply)
            assert all(start < end for start, end in spans) or not reply
            assert all(a[1] < b[0] for a, b in pairwise(spans))


LONG = 100_000
HOSTILE = {
    "letters": "a" * LONG,
    "syllables": "ab" * (LONG // 2),
    "spaces": " " * LONG,
    "spaces in a line": "a" + " " * LONG + "b",
    "spaces before a fence": " " * LONG + "```",
    "dots before a letter": "." * LONG + "a",
    "NULs": "\x00" * LONG,
    "line ends": "\n" * LONG,
    **{f"signs {sign}": sign * LONG for sign in '#*="`(|'},
    "at signs": "a@" * 10_000,
    "right to left": "\u202e" + "שלום עולם " * 3_000,
    "emoji": "👨‍👩‍👧‍👦" * 10_000,
    "Chinese": "我不知道你在说什么" * 3_000,
    "users": "User: a\n" * 5_000,
    "speakers": "### Human: a\nMe: b\nYou: c\n" * 2_000,
    "questions": "\n".join(f"What is w{i} like?\nIt is fine." for i in range(1_500)),
    "examples": "example " * 10_000 + "\nUser: a",
    "special tokens": "<|im_start|>" * 8_000,
    "sentences": ". ".join(f"W{i} is here" for i in range(3_000)),
    "code": "x = f(1);\n" * 5_000,
    "digits": "1. " * 10_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_long_and_odd_texts_take_little_time(text: str) -> None:
    start = time.process_time()
    find_failures([sample(text, text[:50_000], "1", False), sample("Yes.", name="2")], NO_TRAINING)
    assert time.process_time() - start < 5


def test_many_replies_take_little_time() -> None:
    rng = random.Random(0)
    vocabulary = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "re") for b in range(400)]
    vocabulary += ["the", "of", "and", "to", "in", "is"] * 200
    samples = [
        sample(
            ". ".join(" ".join(rng.choices(vocabulary, k=20)) for _ in range(10)) + ".",
            " ".join(rng.choices(vocabulary, k=10)) + "?",
        )
        for _ in range(200)
    ]
    start = time.process_time()
    find_failures(samples, NO_TRAINING)
    assert time.process_time() - start < 10  # it takes one second on a quiet machine
