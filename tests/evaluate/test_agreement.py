"""Agreement with references and required words: known answers."""

import pytest

from chattune.conversation import Message
from chattune.evaluate.agreement import chrf, is_right, word_f1
from chattune.evaluate.sample import Sample


@pytest.mark.parametrize(
    ("reply", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("The cat, sat!", "the cat sat", 1.0),
        ("a dog", "the cat", 0.0),
        ("the cat", "the cat sat down", 2 / 3),
        ("the the the", "the", 0.5),
        ("", "the cat", 0.0),
    ],
)
def test_word_f1(reply: str, reference: str, expected: float) -> None:
    assert word_f1(reply, reference) == pytest.approx(expected)


def test_chrf_is_one_for_equal_texts_and_zero_for_texts_without_a_common_letter() -> None:
    assert chrf("the cat sat", "the cat sat") == pytest.approx(1)
    assert chrf("xyz", "abc") == 0
    assert 0 < chrf("the cat", "the cat sat") < 1


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Paris is the capital of France.", True),
        ("PARIS, in France!", True),
        ("Paris.", False),  # the second group is missing
        ("Parisian France", False),  # not a whole word
        ("All-Paris in France", False),
        ("Paris in France, or London.", False),
    ],
)
def test_a_right_reply_has_every_group_and_no_forbidden_word(reply: str, right: bool) -> None:
    messages = (Message("user", "?"),)
    groups = (("paris",), ("france", "french"))
    sample = Sample("a", "", 1, 0, messages, reply, required=groups, forbidden=("london",))
    assert is_right(sample) is right
    assert is_right(Sample("a", "", 1, 0, messages, reply)) is None
