"""Tokens become text as they come: whole characters only, nothing lost, and why it ended."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.base import starter_folder
from chattune.generate import Decoding
from chattune.generate.finish import Reply, read_reply
from chattune.generate.scripted import ScriptedEngine
from chattune.template import Template

END = 0  # the starter's end token
HALF = "\ufffd"


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.load(starter_folder())


def read(template: Template, ids: list[int]) -> tuple[list[str], Reply]:
    *pieces, reply = read_reply(ids, template)
    assert isinstance(reply, Reply)
    assert all(isinstance(piece, str) for piece in pieces)
    return [str(piece) for piece in pieces], reply


def bytewise(template: Template, text: str) -> list[int]:
    """Ids of `text` with one token a byte, as a model may well write it."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = "".join(
        piece for piece, _ in ByteLevel(False, use_regex=False).pre_tokenize_str(text)
    )
    ids = template.tokenizer.convert_tokens_to_ids(list(letters))
    assert len(ids) == len(text.encode())
    return list(ids)


def test_a_reply_that_ends_itself_stopped(template: Template) -> None:
    ids = template.words("Hello there.")
    pieces, reply = read(template, [*ids, END])
    assert "".join(pieces) == "Hello there."
    assert reply == Reply("Hello there.", len(ids) + 1, "stop")
    assert str(reply) == "Hello there."


def test_a_reply_that_was_cut_off_has_its_length(template: Template) -> None:
    ids = template.words("Hello there.")
    pieces, reply = read(template, ids)
    assert "".join(pieces) == "Hello there."
    assert reply == Reply("Hello there.", len(ids), "length")


def test_nothing_is_read_after_the_end(template: Template) -> None:
    def tokens() -> Iterator[int]:
        yield from (*template.words("Hi"), END)
        raise AssertionError("asked for a token after the end")

    assert list(read_reply(tokens(), template))[-1].finish == "stop"  # type: ignore[union-attr]


@pytest.mark.parametrize(("ids", "finish"), [([END], "stop"), ([], "length")])
def test_a_reply_of_no_words_is_empty(template: Template, ids: list[int], finish: str) -> None:
    assert read(template, ids) == ([], Reply("", len(ids), finish))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["😀", "日本語です。", "Größe", "👩‍👩‍👧 family", "a😀b", "한국어", "é", "\U0001f1e9\U0001f1ea"],
)
def test_split_characters_wait_until_they_are_whole(template: Template, text: str) -> None:
    pieces, reply = read(template, [*bytewise(template, text), END])
    assert "".join(pieces) == reply.text == text
    assert HALF not in "".join(pieces)
    assert len(pieces) == len(text)


@settings(max_examples=150, deadline=None)
@given(
    words=st.text(max_size=25),
    split=st.booleans(),
    ended=st.booleans(),
)
def test_pieces_make_up_the_whole(template: Template, words: str, split: bool, ended: bool) -> None:
    ids = bytewise(template, words) if split else template.words(words)
    pieces, reply = read(template, [*ids, END] if ended else ids)
    assert "".join(pieces).strip() == reply.text == words.strip()
    assert "" not in pieces


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(1, 8191), max_size=25))
def test_whatever_a_model_writes_pieces_make_up_the_whole(
    template: Template, ids: list[int]
) -> None:
    """Random tokens: stray bytes and broken characters too."""
    pieces, reply = read(template, ids)
    assert "".join(pieces) == template.decode(ids)
    assert reply == Reply(template.decode(ids).strip(), len(ids), "length")


def test_a_character_cut_off_at_the_end_is_not_hidden(template: Template) -> None:
    pieces, reply = read(template, [*template.words("a"), *bytewise(template, "😀")[:2]])
    assert pieces == ["a", HALF]
    assert reply.finish == "length"


def test_text_comes_before_the_next_token_is_asked_for(template: Template) -> None:
    asked = 0

    def tokens() -> Iterator[int]:
        nonlocal asked
        for token in template.words("one two three four"):
            asked += 1
            yield token

    for seen, piece in enumerate(read_reply(tokens(), template), 1):
        assert asked >= seen or isinstance(piece, Reply)
        if seen == 1:
            assert asked == 1


def test_outer_white_space_belongs_to_no_reply(template: Template) -> None:
    _, reply = read(template, [*bytewise(template, " \n hi \n"), END])
    assert reply.text == "hi"


# --- the scripted engine -----------------------------------------------------------------------


def test_the_script_answers_in_turn_and_keeps_the_prompts() -> None:
    engine = ScriptedEngine([[1, 2], [3]])
    told = [list(engine.generate([[n]], Decoding())) for n in (7, 8, 9)]
    assert told == [[(0, 1), (0, 2)], [(0, 3)], [(0, 1), (0, 2)]]
    assert engine.prompts == [[7], [8], [9]]


def test_the_script_answers_several_prompts_in_one_call() -> None:
    engine = ScriptedEngine([[1, 2], [3]])
    assert list(engine.generate([[7], [8]], Decoding())) == [(0, 1), (0, 2), (1, 3)]


def test_the_script_keeps_to_max_new_tokens() -> None:
    engine = ScriptedEngine([[1, 2, 3]])
    assert list(engine.generate([[7]], Decoding(max_new_tokens=2))) == [(0, 1), (0, 2)]


# --- stop texts --------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["###", "\n#", "Human:"])
def test_a_stop_text_ends_a_reply_and_is_left_out(template: Template, stop: str) -> None:
    text = "All well.\n### Human: And you?"
    *pieces, reply = read_reply(bytewise(template, text), template, (stop, "never"))
    assert isinstance(reply, Reply)
    assert "".join(map(str, pieces)) == text[: text.index(stop)]
    assert reply.text == text[: text.index(stop)].strip()
    assert reply.finish == "stop"
    assert reply.tokens == text.index(stop) + len(stop)


def test_what_only_begins_like_a_stop_text_is_said(template: Template) -> None:
    *pieces, reply = read_reply(bytewise(template, "a # b ##"), template, ("###",))
    assert "".join(map(str, pieces)) == "a # b ##"
    assert isinstance(reply, Reply)
    assert reply.finish == "length"
