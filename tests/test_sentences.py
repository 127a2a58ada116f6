"""Tests of sentence_ends and unit_ends on texts that a reader would split in the same way."""

from itertools import pairwise

import pytest

from chattune.sentences import sentence_ends, unit_ends


def sentences(text: str) -> list[str]:
    """Return what ends before each index, without the white space between; the rest comes last."""
    ends = [0, *sentence_ends(text), len(text)]
    return [text[a:b].strip() for a, b in pairwise(ends) if text[a:b].strip()]


def units(text: str) -> list[str]:
    ends = [0, *unit_ends(text)]
    return [text[a:b].strip() for a, b in pairwise(ends)]


@pytest.mark.parametrize(
    "expected",
    [
        ["It rains.", "Does it?", "Yes!", "Well…", "And so on"],
        ["Really?!", "Yes...", "No"],
        ['He said "no."', "Then he went"],
        ["He said “no.”", "(Yes, he did.)", "**That is bold.**", "Then"],
        ["« Oui. »", "Il part"],
        ["Er sagte »Nein.«", "Dann ging er"],
        ["¿Qué hora es?", "¡Tarde!", "Vamos"],
        ["यह पहला वाक्य है।", "यह दूसरा"],
        ["هل هذا سؤال؟", "نعم"],
        ["یہ پہلا جملہ ہے۔", "یہ دوسرا"],
        ["Pi is 3.14 or so.", "See example.com/a.", "Then"],
        ["Ask Dr. Smith, e.g. at noon.", "He knows."],
        ["Das kostet z.B. zwei Euro.", "Oder"],
        ["So do I.", "Then"],
    ],
    ids=lambda expected: expected[0],
)
def test_sentences_are_separated(expected: list[str]) -> None:
    assert sentences(" ".join(expected) + " ") == expected


@pytest.mark.parametrize(
    "expected",
    [["这是第一句话。", "这是第二句吗？", "是"], ["「はい。」", "そうです。", "では"]],
    ids=lambda expected: expected[0],
)
def test_scripts_without_spaces_are_separated_at_their_marks(expected: list[str]) -> None:
    assert sentences("".join(expected)) == expected


def test_a_line_is_a_sentence_and_the_marker_of_an_item_is_none() -> None:
    text = "A heading\n1. One.\n  b. Two.\n2. "
    assert sentences(text) == ["A heading", "1. One.", "b. Two.", "2."]
    assert text.index("2.") + 2 not in list(sentence_ends(text))


def test_the_mark_at_the_end_of_a_line_ends_one_sentence() -> None:
    assert list(sentence_ends("One.\nTwo.\n")) == [4, 9]


def test_only_what_lies_between_start_and_end_is_seen() -> None:
    text = "One. Two. Three. Four."
    assert list(sentence_ends(text, 4, 10)) == [9]
    assert list(sentence_ends(text, 4, 9)) == []  # the space that proves the end is not seen


# --- units -------------------------------------------------------------------------------------


def test_an_item_of_a_list_is_one_unit_with_the_line_before_it() -> None:
    text = "It is easy. Do this:\n\n- Boil it. Wait.\n* Pour it.\n3) Drink\nDone. And"
    assert units(text) == [
        "It is easy.",
        "Do this:\n\n- Boil it. Wait.",
        "* Pour it.",
        "3) Drink",
        "Done.",
    ]


@pytest.mark.parametrize("fence", ["```", "~~~~"])
def test_a_block_of_code_is_one_unit(fence: str) -> None:
    block = f"Run **this:**\n{fence}py\n# First. Then\n\nprint(1)\n{fence}"
    assert units(f"{block}\nIt prints. One") == [block, "It prints."]


@pytest.mark.parametrize("text", ["```\nOne. Two.\n", "```\nOne.\n~~~\n", "- One. Two. ", "- "])
def test_what_is_not_closed_is_no_unit(text: str) -> None:
    assert units(text) == []


def test_a_heading_belongs_to_what_follows() -> None:
    assert units("One.\n\n## 1. More. And more\n\nTwo. Three.\n") == [
        "One.",
        "## 1. More. And more\n\nTwo.",
        "Three.",
    ]
    assert units("One.\n# More\n") == ["One."]


def test_units_go_on_from_an_earlier_end() -> None:
    text = "One. - Two. Three.\n- Four. Five\n```\nSix.\n```  \nSeven. "
    ends = list(unit_ends(text))
    assert len(ends) == 6
    for n, end in enumerate(ends):
        assert list(unit_ends(text, end)) == ends[n + 1 :]
