"""Tests for formats: each is recognised by its fields, and its rows become conversations."""

from typing import Any

import pytest

from chattune.conversation import Conversation
from chattune.data.formats import Row, read_conversations, recognise
from chattune.data.report import Tally
from chattune.errors import BadRow, DataError
from chattune.recipe import DataRecipe
from rows import SHAPES

Turns = list[tuple[str, str]]


def recipe(**fields: Any) -> DataRecipe:
    return DataRecipe(source="talk.jsonl", **fields)


def read_all(row: dict[str, Any], **settings: Any) -> list[Turns]:
    row_format = recognise(row, recipe(**settings))
    assert row_format is not None
    conversations = row_format.read(row, recipe(**settings))
    return [[(m.role, m.content) for m in c.messages] for c in conversations]


def read(row: dict[str, Any], **settings: Any) -> Turns:
    (only,) = read_all(row, **settings)
    return only


def name_of(row: dict[str, Any], **settings: Any) -> str | None:
    row_format = recognise(row, recipe(**settings))
    return row_format and row_format.name


@pytest.mark.parametrize("name", SHAPES)
def test_a_format_is_told_by_its_fields(name: str) -> None:
    row = SHAPES[name]("Why?", "Because.")
    assert name_of(row) == name
    assert [(role, text.strip()) for role, text in read(row)] == [
        ("user", "Why?"),
        ("assistant", "Because."),
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_a_format_that_is_forced_reads_the_same(name: str) -> None:
    row = SHAPES[name]("Why?", "Because.")
    assert name_of(row, format=name) == name
    assert read(row, format=name) == read(row)


def test_a_forced_format_wins_over_what_the_fields_say() -> None:
    row = {"prompt": "Why?", "completion": "Because.", "messages": [], "answer": "No."}
    assert name_of(row) == "messages"
    assert read(row, format="prompt-completion") == [("user", "Why?"), ("assistant", "Because.")]


@pytest.mark.parametrize("name", SHAPES)
def test_a_forced_format_that_the_row_has_not_gives_no_words(name: str) -> None:
    row = Row("talk.jsonl:1", {"something": "else"})
    conversations, _ = read_rows([row], format=name, skip_bad_rows=True)
    assert not any(message.content for c in conversations for message in c.messages)


def test_an_unknown_format_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"data\.format: 'chatml' is not known.*messages.*openorca"):
        name_of({"messages": []}, format="chatml")


@pytest.mark.parametrize(
    "row", [{}, {"text": "plain prose"}, {"messages": "not a list"}, {"question": "alone"}]
)
def test_rows_of_no_known_format_are_not_recognised(row: dict[str, Any]) -> None:
    assert name_of(row) is None


# --- Guanaco: markers in one text ---------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "### Human: Why?### Assistant: Because.### Human: Oh.### Assistant: Yes.",
        "### Human: Why? ### Assistant: Because. ### Human: Oh. ### Assistant: Yes.",
        "### Human: Why?\n### Assistant: Because.\n\n### Human: Oh.\n### Assistant: Yes.\n",
        "\n### Human:Why?### Assistant:Because.### Human:Oh.### Assistant:Yes.",
    ],
    ids=["joined", "spaces", "newlines", "no space after"],
)
def test_guanaco_markers_with_and_without_white_space_around(text: str) -> None:
    assert [(role, content.strip()) for role, content in read({"text": text})] == [
        ("user", "Why?"),
        ("assistant", "Because."),
        ("user", "Oh."),
        ("assistant", "Yes."),
    ]


def test_guanaco_system_marker() -> None:
    turns = read({"text": "### System: Be kind.### Human: Hi### Assistant: Hello"})
    assert turns[0] == ("system", "Be kind.")


@pytest.mark.parametrize(
    "reply",
    [
        "### Steps\n1. Boil.\n### Result\nTea.",
        "#### Human: x\nis a heading of the fourth level",
        "##### Assistant: so is this",
        "###Human: without the space is no marker",
        "### Humans: are not one either",
        "A # B ## C ### D",
    ],
)
def test_markdown_headings_in_a_guanaco_reply_stay_words(reply: str) -> None:
    turns = read({"text": f"### Human: How?\n### Assistant: {reply}"})
    assert turns == [("user", "How?"), ("assistant", reply)]


def test_text_before_the_first_guanaco_marker_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match="before the first"):
        read({"text": "A chat.### Human: Hi### Assistant: Hello"})


# --- one question and one answer in columns ----------------------------------------------------


def test_openorca_with_a_system_prompt() -> None:
    row = {"system_prompt": "Think.", "question": "Why?", "response": "So."}
    assert read(row) == [("system", "Think."), ("user", "Why?"), ("assistant", "So.")]


@pytest.mark.parametrize("nothing", ["", "  \n", None])
def test_openorca_with_an_empty_system_prompt_has_none(nothing: str | None) -> None:
    row = {"system_prompt": nothing, "question": "Why?", "response": "So."}
    assert read(row) == [("user", "Why?"), ("assistant", "So.")]


def test_openorca_without_the_system_column() -> None:
    assert read({"question": "Why?", "response": "So."})[0] == ("user", "Why?")


def test_dolly_context_follows_the_instruction() -> None:
    row = {"instruction": "Sum up.", "context": "A long text.", "response": "Short."}
    assert read(row) == [("user", "Sum up.\n\nA long text."), ("assistant", "Short.")]


@pytest.mark.parametrize("nothing", ["", " ", None])
def test_dolly_without_context_is_the_instruction_alone(nothing: str | None) -> None:
    row = {"instruction": "Sum up.", "context": nothing, "response": "Short."}
    assert read(row)[0] == ("user", "Sum up.")


def test_alpaca_input_follows_the_instruction() -> None:
    row = {"instruction": "Translate.", "input": "Hund", "output": "dog"}
    assert read(row) == [("user", "Translate.\n\nHund"), ("assistant", "dog")]


def test_alpaca_system_column() -> None:
    row = {"system": "Be brief.", "instruction": "Hi", "input": "", "output": "Hello"}
    assert read(row)[0] == ("system", "Be brief.")


def test_prompt_and_completion_as_message_lists() -> None:
    row = {
        "prompt": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Why?"}],
        "completion": [{"role": "assistant", "content": "So."}],
    }
    assert name_of(row) == "prompt-completion"
    assert read(row) == [("system", "Be."), ("user", "Why?"), ("assistant", "So.")]


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (2.5, "2.5"), (None, "")])
def test_numbers_become_text_and_null_is_empty(value: object, text: str) -> None:
    assert read({"question": "How many?", "answer": value})[1] == ("assistant", text)


@pytest.mark.parametrize("value", [True, {"text": "x"}, ["x"]])
def test_an_answer_that_is_no_text_is_a_bad_row(value: object) -> None:
    with pytest.raises(BadRow, match="answer is not text"):
        read({"question": "Why?", "answer": value})


def test_half_a_character_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match="half a character"):
        read({"question": "Why?", "answer": "\ud83d"})


# --- lists of turns ----------------------------------------------------------------------------


def test_messages_with_system_and_several_turns() -> None:
    turns = [
        ("system", "Be."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
    ]
    assert read({"messages": [{"role": r, "content": w} for r, w in turns]}) == turns


def test_message_content_as_a_list_of_text_parts() -> None:
    parts = [{"type": "text", "text": "Why "}, {"type": "text", "text": "so?"}]
    row = {"messages": [{"role": "user", "content": parts}]}
    assert read(row) == [("user", "Why so?")]


def test_a_text_part_without_text_adds_no_words() -> None:
    parts = [{"type": "text", "text": "Why?"}, {"type": "text", "text": None}]
    assert read({"messages": [{"role": "user", "content": parts}]}) == [("user", "Why?")]


def test_a_part_that_is_an_image_is_a_bad_row() -> None:
    parts = [{"type": "text", "text": "See:"}, {"type": "image_url", "image_url": "x.png"}]
    with pytest.raises(BadRow, match="content is not text but list"):
        read({"messages": [{"role": "user", "content": parts}]})


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("human", "user"), ("USER", "user"), ("gpt", "assistant"), ("system", "system")],
)
def test_sharegpt_speakers(speaker: str, role: str) -> None:
    assert read({"conversations": [{"from": speaker, "value": "x"}]}) == [(role, "x")]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "tool", "content": "x"}, "unknown role 'tool'"),
        ({"content": "x"}, "without 'role' and 'content'"),
        ({"role": "user"}, "without 'role' and 'content'"),
        ("words", "without 'role' and 'content'"),
        ({"role": None, "content": "x"}, "unknown role None"),
    ],
)
def test_a_turn_that_cannot_be_read_is_a_bad_row(turn: object, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read({"messages": [turn]})


# --- Open-Assistant trees ----------------------------------------------------------------------


def node(role: str, text: str, *replies: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies), **more}


TREE = {
    "prompt": node(
        "prompter",
        "Q",
        node("assistant", "worse", rank=1),
        node(
            "assistant",
            "best",
            node("prompter", "ignored", rank=1),
            node("prompter", "more?", node("assistant", "second", rank=0), rank=0),
            rank=0,
        ),
        node("assistant", "unranked", node("prompter", "left alone")),
        node("assistant", "removed", rank=-1, deleted=True),
    )
}


def test_the_best_path_of_a_tree_follows_the_ranks() -> None:
    assert read(TREE) == [
        ("user", "Q"),
        ("assistant", "best"),
        ("user", "more?"),
        ("assistant", "second"),
    ]


def test_every_path_of_a_tree_ends_in_a_reply() -> None:
    paths = [[text for _, text in turns] for turns in read_all(TREE, tree_paths="all")]
    assert paths == [
        ["Q", "worse"],
        ["Q", "best"],
        ["Q", "best", "more?", "second"],
        ["Q", "unranked"],
    ]


def test_questions_that_nobody_answered_give_one_path_not_several() -> None:
    answer = node("assistant", "A", node("prompter", "x"), node("prompter", "y"))
    assert read_all({"prompt": node("prompter", "Q", answer)}, tree_paths="all") == [
        [("user", "Q"), ("assistant", "A")]
    ]


def test_a_tree_without_replies_gives_no_conversation() -> None:
    assert read_all({"prompt": node("prompter", "Q")}) == []


def test_replies_that_are_null_are_none() -> None:
    assert read_all({"prompt": {"role": "prompter", "text": "Q", "replies": None}}) == []


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"role": "prompter"},
        node("narrator", "Q"),
        {"role": "prompter", "text": "Q", "replies": ["words"]},
        {"role": "prompter", "text": "Q", "replies": {"a": 1}},
        {"role": "prompter", "text": "Q", "replies": 5},
        node("prompter", "Q", node("assistant", "A", rank="x"), node("assistant", "B", rank=0)),
    ],
    ids=["empty", "no text", "role", "reply of words", "replies object", "number", "rank of words"],
)
def test_a_tree_that_cannot_be_read_is_a_bad_row(prompt: dict[str, Any]) -> None:
    with pytest.raises(BadRow):
        read_all({"prompt": prompt})


# --- columns named by the recipe ---------------------------------------------------------------

COLUMNS = {"system": "who", "user": "ask", "assistant": "tell"}


def test_columns_named_by_the_recipe() -> None:
    row = {"who": "Be.", "ask": "Why?", "tell": "So.", "messages": []}
    assert name_of(row, columns=COLUMNS) == "columns"
    assert read(row, columns=COLUMNS) == [("system", "Be."), ("user", "Why?"), ("assistant", "So.")]


def test_columns_without_a_system_column() -> None:
    columns = {"user": "ask", "assistant": "tell"}
    assert read({"ask": "Why?", "tell": "So."}, columns=columns)[0] == ("user", "Why?")


def test_a_column_that_the_row_has_not_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match="no column 'tell'; the row has who, ask"):
        read({"who": "", "ask": "Why?"}, columns=COLUMNS)


@pytest.mark.parametrize("absent", ["user", "assistant"])
def test_a_mapping_needs_question_and_answer(absent: str) -> None:
    columns = {k: v for k, v in COLUMNS.items() if k != absent}
    with pytest.raises(DataError, match=rf"data\.columns: {absent} missing"):
        name_of({"ask": "Why?"}, columns=columns)


# --- many rows ---------------------------------------------------------------------------------


def rows_of(*shapes: str) -> list[Row]:
    return [
        Row(f"talk.jsonl:{i}", SHAPES[s](f"Q{i}", f"A{i}")) for i, s in enumerate(shapes, start=1)
    ]


def read_rows(rows: list[Row], **settings: Any) -> tuple[list[Conversation], Tally]:
    tally, skip = Tally(), settings.pop("skip_bad_rows", False)
    conversations = read_conversations(iter(rows), recipe(**settings), tally, skip_bad_rows=skip)
    return list(conversations), tally


@pytest.mark.parametrize("name", SHAPES)
def test_the_recognised_format_and_the_rows_are_counted(name: str) -> None:
    assert Tally().format == "none"
    conversations, tally = read_rows(rows_of(name, name))
    assert len(conversations) == 2
    assert (tally.format, tally.rows) == (name, 2)


def test_mixed_shapes_show_both_rows() -> None:
    with pytest.raises(DataError) as refused:
        read_rows(rows_of("alpaca", "alpaca", "dolly"))
    text = str(refused.value)
    assert text.startswith("talk.jsonl:3: mixed shapes: this row is dolly")
    assert '"instruction": "Q3"' in text
    assert "talk.jsonl:1 is alpaca" in text
    assert '"output": "A1"' in text


def test_bad_rows_are_counted_when_they_may_be_skipped() -> None:
    rows = [*rows_of("alpaca", "dolly", "alpaca"), Row("talk.jsonl:4", {}, "broken JSON")]
    conversations, tally = read_rows(rows, skip_bad_rows=True)
    assert [c.opening for c in conversations] == ["Q1", "Q3"]
    assert (tally.rows, tally.dropped["bad_row"]) == (4, 2)


def test_a_tree_counts_each_of_its_conversations_as_a_row() -> None:
    rows = [Row("trees.jsonl:1", TREE), Row("trees.jsonl:2", {"prompt": node("prompter", "Q")})]
    conversations, tally = read_rows(rows, tree_paths="all")
    assert len(conversations) == 4
    assert (tally.rows, tally.dropped) == (5, {"no_assistant_turn": 1})
