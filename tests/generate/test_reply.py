"""Tests of read_reply: whole characters only, nothing lost, stop texts, and why a reply ended."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.base import starter_folder
from chattune.generate import Decoding
from chattune.generate.reply import Reply, read_reply
from chattune.generate.scripted import ScriptedEngine
from chattune.template import Template

END = 0  # the starter's end token
INCOMPLETE = "\ufffd"  # what incomplete bytes are decoded to


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.load(starter_folder())


def read(template: Template, ids: list[int]) -> tuple[list[str], Reply]:
    *pieces, reply = read_reply(ids, template)
    assert isinstance(reply, Reply)
    assert all(isinstance(piece, str) for piece in pieces)
    return [str(piece) for piece in pieces], reply


def bytewise(template: Template, text: str) -> list[int]:
    """Return the ids of `text` with one token for each byte; a model may generate these."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = "".join(
        piece for piece, _ in ByteLevel(False, use_regex=False).pre_tokenize_str(text)
    )
    ids = template.tokenizer.convert_tokens_to_ids(list(letters))
    assert len(ids) == len(text.encode())
    return list(ids)


def test_a_reply_that_ends_itself_stopped(template: Template) -> None:
    ids = template.encode("Hello there.")
    pieces, reply = read(template, [*ids, END])
    assert "".join(pieces) == "Hello there."
    assert reply == Reply("Hello there.", len(ids) + 1, "stop")
    assert str(reply) == "Hello there."


def test_a_reply_that_was_cut_off_has_its_length(template: Template) -> None:
    ids = template.encode("Hello there.")
    pieces, reply = read(template, ids)
    assert "".join(pieces) == "Hello there."
    assert reply == Reply("Hello there.", len(ids), "length")


def test_nothing_is_read_after_the_end(template: Template) -> None:
    def tokens() -> Iterator[int]:
        yield from (*template.encode("Hi"), END)
        raise AssertionError("asked for a token after the end")

    assert list(read_reply(tokens(), template))[-1].finish == "stop"  # type: ignore[union-attr]


@pytest.mark.parametrize(("ids", "finish"), [([END], "stop"), ([], "length")])
def test_a_reply_without_text_is_empty(template: Template, ids: list[int], finish: str) -> None:
    assert read(template, ids) == ([], Reply("", len(ids), finish))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["😀", "日本語です。", "Größe", "👩‍👩‍👧 family", "a😀b", "한국어", "é", "\U0001f1e9\U0001f1ea"],
)
def test_split_characters_wait_until_they_are_whole(template: Template, text: str) -> None:
    pieces, reply = read(template, [*bytewise(template, text), END])
    assert "".join(pieces) == reply.text == text
    assert INCOMPLETE not in "".join(pieces)
    assert len(pieces) == len(text)


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=25),
    split=st.booleans(),
    ended=st.booleans(),
)
def test_pieces_make_up_the_reply(template: Template, text: str, split: bool, ended: bool) -> None:
    ids = bytewise(template, text) if split else template.encode(text)
    pieces, reply = read(template, [*ids, END] if ended else ids)
    assert "".join(pieces).strip() == reply.text == text.strip()
    assert "" not in pieces


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(1, 8191), max_size=25))
def test_pieces_of_random_tokens_make_up_the_reply(template: Template, ids: list[int]) -> None:
    """Random tokens contain bytes that are not valid UTF-8."""
    pieces, reply = read(template, ids)
    assert "".join(pieces) == template.decode(ids)
    assert reply == Reply(template.decode(ids).strip(), len(ids), "length")


def test_an_incomplete_character_at_the_end_is_shown(template: Template) -> None:
    pieces, reply = read(template, [*template.encode("a"), *bytewise(template, "😀")[:2]])
    assert pieces == ["a", INCOMPLETE]
    assert reply.finish == "length"


def test_text_is_yielded_before_the_next_token_is_read(template: Template) -> None:
    asked = 0

    def tokens() -> Iterator[int]:
        nonlocal asked
        for token in template.encode("one two three four"):
            asked += 1
            yield token

    for seen, piece in enumerate(read_reply(tokens(), template), 1):
        assert asked >= seen or isinstance(piece, Reply)
        if seen == 1:
            assert asked == 1


def test_a_long_reply_is_decoded_once(template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding all ids again for each token would take time quadratic in the reply's length."""
    lengths: list[int] = []
    decode = Template.decode
    monkeypatch.setattr(
        Template, "decode", lambda self, ids: (lengths.append(len(ids)), decode(self, ids))[1]
    )
    ids = template.encode("one two three " * 100)
    pieces, _ = read(template, ids)
    assert len(pieces) > 200
    assert lengths == [len(ids)]


def test_a_reply_is_stripped(template: Template) -> None:
    _, reply = read(template, [*bytewise(template, " \n hi \n"), END])
    assert reply.text == "hi"


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


def test_the_beginning_of_a_stop_text_is_kept(template: Template) -> None:
    *pieces, reply = read_reply(bytewise(template, "a # b ##"), template, ("###",))
    assert "".join(map(str, pieces)) == "a # b ##"
    assert isinstance(reply, Reply)
    assert reply.finish == "length"


@settings(max_examples=150, deadline=None)
@given(
    text=st.text("ab# é", max_size=25),
    stop=st.lists(st.text("ab# é", min_size=1, max_size=3), max_size=3),
    split=st.booleans(),
)
def test_a_reply_ends_before_the_first_stop_text(
    template: Template, text: str, stop: list[str], split: bool
) -> None:
    ids = bytewise(template, text) if split else template.encode(text)
    text = template.decode(ids)
    *pieces, reply = read_reply(ids, template, stop)
    end = min((text.index(s) for s in stop if s in text), default=None)
    assert "".join(map(str, pieces)) == text[:end]
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish) == (text[:end].strip(), "length" if end is None else "stop")


# --- tokenizers with one-byte tokens -----------------------------------------------------------

MARK = "▁"  # stands for a space in SentencePiece vocabularies


@pytest.fixture(scope="module")
def sentencepiece() -> Template:
    """A template whose tokenizer decodes like Llama 2's: bytes as tokens, no leading space."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [MARK, MARK * 2, f"{MARK}a", "a", f"{MARK}word", "word", "é", f"{MARK}{INCOMPLETE}"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:3]])
    tokenizer.normalizer = normalizers.Replace(" ", MARK)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Template(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>"))


def named(template: Template, *pieces: str | bytes) -> list[int]:
    """Return the ids of pieces of the vocabulary; bytes become one token each."""
    names: list[str] = []
    for piece in pieces:
        names += [piece] if isinstance(piece, str) else [f"<0x{byte:02X}>" for byte in piece]
    return list(template.tokenizer.convert_tokens_to_ids(names))


@settings(max_examples=500, deadline=None)
@given(
    ids=st.lists(
        st.one_of(
            st.integers(0, 1) | st.integers(259, 268),  # special, ordinary and unknown tokens
            st.integers(3, 258),  # any byte
            st.sampled_from([3 + byte for byte in "\n a😀".encode()]),
        ),
        max_size=15,
    )
)
def test_pieces_of_random_byte_tokens_make_up_the_reply(
    sentencepiece: Template, ids: list[int]
) -> None:
    pieces, reply = read(sentencepiece, ids)
    assert "".join(pieces) == sentencepiece.decode(ids)
    assert reply == Reply(sentencepiece.decode(ids).strip(), len(ids), "length")
    assert "" not in pieces


def test_only_the_first_space_is_stripped(sentencepiece: Template) -> None:
    ids = named(sentencepiece, f"{MARK}word", f"{MARK}a", MARK, f"{MARK}word")
    assert read(sentencepiece, ids)[0] == ["word", " a", " ", " word"]


def test_byte_tokens_wait_for_the_token_after_them(sentencepiece: Template) -> None:
    ids = named(sentencepiece, "word", b"\n", "😀".encode(), f"{MARK}a")
    assert read(sentencepiece, ids)[0] == ["word", "\n😀 a"]
    assert read(sentencepiece, ids[:-1])[0] == ["word", "\n😀"]


def test_an_invalid_byte_replaces_the_bytes_before_it(sentencepiece: Template) -> None:
    """DecodeStream fails here if it has already returned the newline."""
    ids = named(sentencepiece, "word", b"\n", "😀".encode()[:2], "a")
    assert read(sentencepiece, ids)[0] == ["word", INCOMPLETE * 3 + "a"]


def test_special_tokens_do_not_end_a_run_of_bytes(sentencepiece: Template) -> None:
    first, *others = "😀".encode()
    ids = named(sentencepiece, bytes([first]), "<s>", bytes(others), "a")
    assert read(sentencepiece, ids)[0] == ["😀a"]


@pytest.mark.parametrize(
    ("stop", "text"), [("\n", "word"), ("d\n\n", "wor"), ("a", "word\n\n"), ("\n\na", "word")]
)
def test_a_stop_text_may_end_in_byte_tokens(sentencepiece: Template, stop: str, text: str) -> None:
    ids = named(sentencepiece, "word", b"\n\n", "a", "word")
    *pieces, reply = read_reply(ids, sentencepiece, (stop,))
    assert "".join(map(str, pieces)) == text
    assert reply == Reply(text.strip(), 4, "stop")


# --- the scripted engine -----------------------------------------------------------------------


def test_the_scripted_engine_answers_in_turn_and_records_prompts() -> None:
    engine = ScriptedEngine([[1, 2], [3]])
    replies = [list(engine.generate([[n]], Decoding())) for n in (7, 8, 9)]
    assert replies == [[(0, 1), (0, 2)], [(0, 3)], [(0, 1), (0, 2)]]
    assert engine.prompts == [[7], [8], [9]]


def test_the_scripted_engine_answers_several_prompts_in_one_call() -> None:
    engine = ScriptedEngine([[1, 2], [3]])
    assert list(engine.generate([[7], [8]], Decoding())) == [(0, 1), (0, 2), (1, 3)]


def test_the_scripted_engine_respects_max_new_tokens() -> None:
    engine = ScriptedEngine([[1, 2, 3]])
    assert list(engine.generate([[7]], Decoding(max_new_tokens=2))) == [(0, 1), (0, 2)]
