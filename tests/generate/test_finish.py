"""Tests of finish_reply: how a reply that reaches max_new_tokens ends, and what is shown before."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.base import starter_folder
from chattune.generate import Decoding
from chattune.generate.finish import finish_reply
from chattune.generate.reply import Reply
from chattune.template import Template

END = 0  # the starter's end token


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.load(starter_folder())


class Tokens:
    """The tokens of a text, one for each byte, of which those are counted that were read."""

    def __init__(self, template: Template, text: str, *, ended: bool = False) -> None:
        from tokenizers.pre_tokenizers import ByteLevel

        pieces = ByteLevel(False, use_regex=False).pre_tokenize_str(text)
        letters = [letter for piece, _ in pieces for letter in piece]
        self.ids = [*template.tokenizer.convert_tokens_to_ids(letters), *([END] if ended else [])]
        self.read = 0

    def up_to(self, most: int) -> Iterator[int]:
        for token in self.ids[:most]:
            self.read += 1
            yield token


def finished(template: Template, tokens: Tokens, decoding: Decoding) -> tuple[list[str], Reply]:
    """Return the pieces and the Reply, as from an engine that writes `decoding.most_tokens`."""
    *pieces, reply = finish_reply(tokens.up_to(decoding.most_tokens), template, decoding)
    assert isinstance(reply, Reply)
    texts = [piece for piece in pieces if isinstance(piece, str)]
    assert len(texts) == len(pieces)
    assert "".join(texts).strip() == reply.text
    assert reply.tokens == tokens.read
    return texts, reply


def cut_after(
    template: Template, text: str, finish: str, rest: str = "", **changes: int
) -> tuple[list[str], Reply]:
    """Finish a reply that reaches its limit after `text`, while the model wanted to write more."""
    limit = len(text.encode())
    decoding = Decoding().but(finish=finish, max_new_tokens=limit, **changes)
    return finished(template, Tokens(template, text + rest), decoding)


# --- sentence ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("The cat sat down. It was ve", "The cat sat down."),
        ("The cat sat down. It was tired.", "The cat sat down. It was tired."),
        ("The cat sat down. It was tired. ", "The cat sat down. It was tired."),
        ('He left. He said "no."', 'He left. He said "no."'),
        ("Pi is a number. It is 3.", "Pi is a number."),
        ("He knows it. Ask Dr.", "He knows it."),
        ("He knows it. Ask Dr. Smith or", "He knows it."),
        ("Is it so? Yes! But then", "Is it so? Yes!"),
        ("这是第一句话。这是第二句话,它比", "这是第一句话。"),
        ("यह पहला वाक्य है। यह दूसरा", "यह पहला वाक्य है।"),
        ("هل هذا سؤال؟ نعم هذا", "هل هذا سؤال؟"),
        ("« Oui. » Il part. Il", "« Oui. » Il part."),
        ("Do this:\n- Boil water.\n- Pour it. Then wa", "Do this:\n- Boil water."),
        ("Do this:\n1. Boil water.\n2.", "Do this:\n1. Boil water."),
        ("Do this:\na. Boil water.\nb.", "Do this:\na. Boil water."),
        ("It is easy. Do this:\n", "It is easy."),
        ("It is easy.\n\n## Steps\n", "It is easy."),
        ("It is easy. Run this:\n```py\nx = 1. \nprint(", "It is easy."),
        ("Run this:\n```py\nx = 1. \n```\nIt pri", "Run this:\n```py\nx = 1. \n```"),
        ("Run this:\n```py\nx = 1. \n```", "Run this:\n```py\nx = 1. \n```"),
        ("A heading\nand a line", "A heading"),
    ],
)
def test_a_reply_ends_with_its_last_whole_sentence(
    template: Template, text: str, kept: str
) -> None:
    _, reply = cut_after(template, text, "sentence", rest=" more. And more.")
    assert reply == Reply(kept, len(text.encode()), "length")


@pytest.mark.parametrize("text", ["and so on and on", "- an item that", "```\nprint(1)\n", "3."])
def test_a_reply_without_a_whole_sentence_is_left_as_it_is(template: Template, text: str) -> None:
    for finish in ("sentence", "continue", "summary"):
        _, reply = cut_after(template, text, finish)
        assert (reply.text, reply.finish) == (text.strip(), "length")


def test_a_sentence_is_shown_when_it_is_whole(template: Template) -> None:
    pieces, _ = cut_after(template, "One of us. Two of us.\n- Three.\n- Four", "sentence")
    assert pieces == ["One of us.", " Two of us.", "\n- Three."]


def test_a_cut_reply_is_shown_as_it_comes(template: Template) -> None:
    pieces, reply = cut_after(template, "One. Tw", "cut", rest="o.")
    assert pieces == list("One. Tw")
    assert reply == Reply("One. Tw", 7, "length")


# --- continue ----------------------------------------------------------------------------------


def test_a_reply_goes_on_to_the_end_of_its_sentence(template: Template) -> None:
    text, rest = "The cat sat down. It was ", "very tired. Then it slept."
    _, reply = cut_after(template, text, "continue", rest)
    assert reply.text == "The cat sat down. It was very tired."
    assert reply.finish == "length"
    assert reply.tokens == len(reply.text) + 1  # the space, which proves that the sentence ended


def test_a_reply_whose_sentence_ends_at_the_limit_goes_on_no_further(template: Template) -> None:
    for text in ("The cat sat down.", "The cat sat down. "):
        _, reply = cut_after(template, text, "continue", " It was tired.")
        assert reply.text == "The cat sat down."
        assert reply.tokens <= len(text) + 1


def test_a_reply_whose_sentence_is_not_finished_in_time_ends_before_it(template: Template) -> None:
    text, rest = "The cat sat down. It was ", "very tired. Then it slept."
    _, reply = cut_after(template, text, "continue", rest, finish_tokens=5)
    assert reply == Reply("The cat sat down.", len(text) + 5, "length")
    _, reply = cut_after(template, text, "continue", rest, finish_tokens=11)
    assert reply.text == "The cat sat down. It was very tired."


def test_an_item_goes_on_to_the_end_of_its_line(template: Template) -> None:
    _, reply = cut_after(template, "Do this:\n- Boil it. Then", "continue", " wait. Long.\n- Pour")
    assert reply.text == "Do this:\n- Boil it. Then wait. Long."


def test_a_reply_that_the_model_ends_after_the_limit_is_whole(template: Template) -> None:
    for finish in ("continue", "summary"):
        decoding = Decoding(max_new_tokens=9, finish=finish)  # type: ignore[arg-type]
        _, reply = finished(template, Tokens(template, "I see this", ended=True), decoding)
        assert reply == Reply("I see this", 11, "length")


# --- summary -----------------------------------------------------------------------------------

STORY = (
    "The cat likes warm milk. My car is red. Warm milk makes the cat sleep. "
    "The cat sleeps after the milk. Then"
)


def test_a_summary_leaves_out_what_is_least_important(template: Template) -> None:
    whole = STORY.removesuffix(" Then")
    limit = len(template.encode(whole.replace(" My car is red.", "")))
    tokens = Tokens(template, STORY)
    tokens.ids = template.encode(STORY)
    decoding = Decoding(max_new_tokens=limit, finish="summary", finish_tokens=40)
    pieces, reply = finished(template, tokens, decoding)
    assert reply.text == whole.replace(" My car is red.", "")
    assert len(template.encode(reply.text)) <= limit < len(template.encode(whole))
    assert pieces == [reply.text]  # nothing is shown that is left out later
    assert reply.finish == "length"


def test_a_summary_of_what_fits_leaves_nothing_out(template: Template) -> None:
    pieces, reply = finished(
        template, Tokens(template, STORY, ended=True), Decoding(finish="summary")
    )
    assert pieces == [STORY]
    assert reply == Reply(STORY, len(STORY) + 1, "stop")


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("finish", ["cut", "sentence", "continue", "summary"])
def test_a_reply_that_ends_in_time_is_whole(template: Template, finish: str) -> None:
    text = "One. Two of us, and"
    tokens = Tokens(template, text, ended=True)
    limit = Decoding().but(finish=finish, max_new_tokens=len(text) + 1)
    assert finished(template, tokens, limit)[1] == Reply(text, len(text) + 1, "stop")


@pytest.mark.parametrize("finish", ["sentence", "continue", "summary"])
def test_a_stop_text_ends_a_reply_within_a_sentence(template: Template, finish: str) -> None:
    decoding = Decoding().but(finish=finish, stop="##", max_new_tokens=40)
    _, reply = finished(template, Tokens(template, "One. Two a# b## Three. "), decoding)
    assert reply == Reply("One. Two a# b", 15, "stop")


texts = st.lists(
    st.sampled_from(
        ["One two.", " ", "\n", "\n\n- an item. Yes", "\n```\n", "Is it?", "那是。", "3.", "a 14",
         "# Head", "so:", "Dr. Who", '"No."', "\n2. ", "é", " » "]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    text=texts,
    finish=st.sampled_from(["sentence", "continue", "summary"]),
    limit=st.integers(1, 80),
    extra=st.integers(0, 30),
    ended=st.booleans(),
)
def test_what_was_shown_is_the_beginning_of_what_there_is(
    template: Template, text: str, finish: str, limit: int, extra: int, ended: bool
) -> None:
    tokens = Tokens(template, text, ended=ended)
    decoding = Decoding().but(finish=finish, max_new_tokens=limit, finish_tokens=extra)
    pieces, reply = finished(template, tokens, decoding)  # compares the pieces with the reply
    assert "" not in pieces
    assert tokens.read <= decoding.most_tokens
    at_limit = len(tokens.ids) > limit or not ended
    assert reply.finish == ("length" if at_limit else "stop")
    if not at_limit:
        assert reply.text == text.strip()
    written = template.decode(tokens.ids[: min(limit, tokens.read)]).strip()
    assert bool(reply.text) == bool(written)  # never left empty
    if finish != "summary":
        assert text.strip().startswith(reply.text.rstrip("\ufffd"))
