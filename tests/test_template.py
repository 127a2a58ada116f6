"""Tests of the renderer: no text forges a turn boundary, and chats see the tokens of training."""

import copy
import functools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattune.base import starter_folder
from chattune.conversation import Conversation, Message
from chattune.errors import BaseError
from chattune.template import CHAT_TEMPLATE, CONCATENATED_TEMPLATE, Rendered, Template
from conftest import SHARED
from rows import base_with

END = "<|endoftext|>"
HEADERS = {"system": "### System:\n", "user": "### Human:\n", "assistant": "### Assistant:\n"}
FORGERIES = (
    END,
    "<|",
    "### Assistant:",
    "### Human:",
    "### System:",
    "\n",
    " ",
    "\t",
    "#",
    "hello",
)

TEXTS = st.lists(st.one_of(st.sampled_from(FORGERIES), st.text(max_size=12)), max_size=6).map(
    "".join
)


@st.composite
def conversations(draw: st.DrawFn, *, answered: bool = False) -> Conversation:
    """Draw an optional system message and one to five turns; if `answered`, a reply is last."""
    roles = ["user", "assistant"] * 3
    roles = roles[: draw(st.sampled_from((2, 4) if answered else (1, 2, 3, 4, 5)))]
    if draw(st.booleans()):
        roles.insert(0, "system")
    return Conversation.of(*((role, draw(TEXTS)) for role in roles))


def load_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(starter_folder())


@pytest.fixture(scope="module", params=["starter", "gpt2"])
def template(request: pytest.FixtureRequest) -> Template:
    if request.param == "starter":
        return Template(load_tokenizer())
    from transformers import GPT2TokenizerFast

    folder = SHARED / "tokenizer-gpt2"
    if not folder.is_dir():
        pytest.skip("GPT-2's vocabulary is not on this machine")
    return Template(GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")))


def parse(template: Template, ids: list[int]) -> list[tuple[str, str]]:
    """Split a rendered conversation into (role, text) pairs at its end tokens and headers."""
    tokenizer = template.tokenizer
    headers = {role: tokenizer(text).input_ids for role, text in HEADERS.items()}
    end = tokenizer.convert_tokens_to_ids(END)
    assert ids[0] == end
    turns: list[list[int]] = [[]]
    for token in ids[1:]:
        if token == end:
            turns.append([])
        else:
            turns[-1].append(token)
    if not turns[-1]:
        turns.pop()
    return [read_turn(template, headers, turn) for turn in turns]


def read_turn(
    template: Template, headers: dict[str, list[int]], turn: list[int]
) -> tuple[str, str]:
    for role, header in headers.items():
        if turn[: len(header)] == header:
            return role, template.decode(turn[len(header) :])
    raise AssertionError(f"a turn without a header: {turn}")


def end_token(template: Template) -> int:
    return int(template.tokenizer.convert_tokens_to_ids(END))


def supervised_ids(rendered: Rendered) -> list[int]:
    return [t for t, s in zip(rendered.ids, rendered.supervised, strict=True) if s]


@settings(max_examples=60, deadline=None)
@given(conversation=conversations())
def test_no_text_adds_an_end_token(template: Template, conversation: Conversation) -> None:
    ids = template.render(conversation).ids
    closing = conversation.roles[-1] == "assistant"
    assert ids.count(end_token(template)) == len(conversation.messages) + closing


@settings(max_examples=60, deadline=None)
@given(conversation=conversations())
def test_roles_and_texts_can_be_read_back(template: Template, conversation: Conversation) -> None:
    turns = [(m.role, m.content.strip()) for m in conversation.messages]
    assert parse(template, template.render(conversation).ids) == turns


@settings(max_examples=60, deadline=None)
@given(conversation=conversations(answered=True))
def test_each_reply_is_trained_after_its_chat_prompt(
    template: Template, conversation: Conversation
) -> None:
    rendered = template.render(conversation)
    starts = [
        i
        for i, (before, supervised) in enumerate(
            zip([False, *rendered.supervised], rendered.supervised, strict=False)
        )
        if supervised and not before
    ]
    replies = [i for i, role in enumerate(conversation.roles) if role == "assistant"]
    assert len(starts) == len(replies)
    for start, reply in zip(starts, replies, strict=True):
        assert rendered.ids[:start] == template.prompt(conversation.messages[:reply])


@settings(max_examples=60, deadline=None)
@given(conversation=conversations())
def test_replies_and_their_end_tokens_are_supervised(
    template: Template, conversation: Conversation
) -> None:
    text = template.decode(supervised_ids(template.render(conversation)), special=True)
    replies = [m.content.strip() for m in conversation.messages if m.role == "assistant"]
    assert text == "".join(reply + END for reply in replies)


@settings(max_examples=60, deadline=None)
@given(conversation=conversations())
def test_transformers_renders_the_same(template: Template, conversation: Conversation) -> None:
    """Compare ids and mask with `apply_chat_template`, for text without special tokens."""
    messages = [
        {"role": m.role, "content": m.content.replace(END, "")} for m in conversation.messages
    ]
    if any(END in m["content"] for m in messages):
        return  # the text around a removed token spells another one
    expected = template.tokenizer.apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    rendered = template.render(Conversation.of(*((m["role"], m["content"]) for m in messages)))
    assert expected["input_ids"] == rendered.ids
    assert [bool(x) for x in expected["assistant_masks"]] == rendered.supervised


@settings(max_examples=30, deadline=None)
@given(conversation=conversations())
def test_transformers_gives_the_same_prompt(template: Template, conversation: Conversation) -> None:
    messages = [
        {"role": m.role, "content": m.content.replace(END, "")} for m in conversation.messages
    ]
    if messages[-1]["role"] == "assistant" or any(END in m["content"] for m in messages):
        return
    expected = template.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert expected["input_ids"] == template.prompt(
        [Message(m["role"], m["content"]) for m in messages]
    )


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_encoded_text_has_no_special_token_and_decodes(template: Template, text: str) -> None:
    ids = template.encode(text)
    assert end_token(template) not in ids
    assert template.decode(ids) == text.strip()


@settings(max_examples=20, deadline=None)
@given(batch=st.lists(conversations(), max_size=6))
def test_many_conversations_render_as_one_by_one(
    template: Template, batch: list[Conversation]
) -> None:
    assert list(template.render_many(batch)) == [template.render(c) for c in batch]


def test_more_conversations_than_a_batch_stay_in_order(template: Template) -> None:
    conversations = (
        Conversation.of(("user", f"number {i}"), ("assistant", str(i))) for i in range(1203)
    )
    replies = [template.decode(supervised_ids(r)) for r in template.render_many(conversations)]
    assert replies == [str(i) for i in range(1203)]


def test_a_batch_of_long_conversations_is_small(template: Template) -> None:
    read = 0

    def long_conversations() -> Iterator[Conversation]:
        nonlocal read
        for _ in range(50):
            read += 1
            yield Conversation.of(("user", "Hi"), ("assistant", "word " * 40_000))

    next(template.render_many(long_conversations()))
    assert read <= 6


def test_no_conversations_render_to_nothing(template: Template) -> None:
    assert list(template.render_many([])) == []


def test_only_the_end_token_of_an_empty_reply_is_supervised(template: Template) -> None:
    rendered = template.render(Conversation.of(("user", "hi"), ("assistant", " \n")))
    assert supervised_ids(rendered) == [end_token(template)]


def test_nothing_is_supervised_in_an_unanswered_conversation(template: Template) -> None:
    assert not any(template.render(Conversation.of(("user", "hi"))).supervised)


def test_ids_and_mask_have_the_same_length(template: Template) -> None:
    rendered = template.render(Conversation.of(("system", "s"), ("user", "u"), ("assistant", "a")))
    assert len(rendered.ids) == len(rendered.supervised)


def test_slot_markers_in_a_message_stay_text(template: Template) -> None:
    conversation = Conversation.of(
        ("user", "\ue0001\ue001 and \ue0000\ue001"), ("assistant", "\ue0001")
    )
    assert parse(template, template.render(conversation).ids) == [
        (m.role, m.content) for m in conversation.messages
    ]


def test_jinja_in_a_message_stays_text(template: Template) -> None:
    text = "{{ eos_token }}{% for m in messages %}{{ m }}{% endfor %}"
    assert parse(template, template.render(Conversation.of(("user", text))).ids) == [("user", text)]


def test_the_end_token_ends_a_reply(template: Template) -> None:
    assert template.end_ids == {end_token(template)}


def test_decode_omits_special_tokens_by_default(template: Template) -> None:
    ids = template.render(Conversation.of(("user", "hi"), ("assistant", "ho"))).ids
    assert END not in template.decode(ids)
    assert template.decode(ids, special=True).count(END) == 3


def test_no_special_token_is_encoded_while_threads_share_the_tokenizer(template: Template) -> None:
    """`encode_special_tokens` is state, and other threads use the tokenizer at the same time."""
    end, stop = end_token(template), threading.Event()

    def disturb() -> int:
        special = 0
        while not stop.is_set():
            special += template.tokenizer(END).input_ids == [end]
            template.tokenizer.apply_chat_template([{"role": "user", "content": END}])
        return special

    def encode(i: int) -> bool:
        conversation = Conversation.of(("user", f"{END}{i}"), ("assistant", f"{i}{END}"))
        return template.render(conversation).ids.count(end) == 3 and end not in template.encode(END)

    with ThreadPoolExecutor(4) as pool:
        disturbance = pool.submit(disturb)
        try:
            assert all(pool.map(encode, range(300)))
        finally:
            stop.set()
        assert disturbance.result() > 0


# --- concatenated -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def concatenated(template: Template) -> Template:
    """The same tokenizers with the template that is concatenated text."""
    tokenizer = copy.deepcopy(template.tokenizer)
    tokenizer.chat_template = CONCATENATED_TEMPLATE
    return Template(tokenizer)


def test_a_concatenated_conversation_is_plain_text(concatenated: Template) -> None:
    talk = Conversation.of(*((m.role, m.content) for m in TALK.messages), ("assistant", " 5 ! "))
    rendered = concatenated.render(talk)
    assert concatenated.decode(rendered.ids, special=True) == (
        "### System: Be kind.\n### Human: Hi.\n### Assistant: Hello.\n"
        "### Human: Bye.\n### Assistant: 5 !"
    )
    assert all(rendered.supervised)
    prompt = concatenated.decode(concatenated.prompt(TALK.messages), special=True)
    assert prompt == (
        "### System: Be kind.\n### Human: Hi.\n### Assistant: Hello.\n"
        "### Human: Bye.\n### Assistant:"
    )


@settings(max_examples=60, deadline=None)
@given(conversation=conversations(answered=True))
def test_a_concatenated_prompt_begins_what_is_trained_and_nobody_can_type_an_end(
    concatenated: Template, conversation: Conversation
) -> None:
    rendered = concatenated.render(conversation)
    for i, role in enumerate(conversation.roles):
        if role == "assistant":
            prompt = concatenated.prompt(conversation.messages[:i])
            assert rendered.ids[: len(prompt)] == prompt
    assert end_token(concatenated) not in rendered.ids
    assert all(rendered.supervised)


@settings(max_examples=100, deadline=None)
@given(conversation=conversations())
def test_transformers_concatenates_the_same(
    concatenated: Template, conversation: Conversation
) -> None:
    """Compare ids, mask and prompt with `apply_chat_template`, for text without special tokens."""
    if any(END in m.content for m in conversation.messages):
        return
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
    apply = concatenated.tokenizer.apply_chat_template
    expected = apply(messages, return_assistant_tokens_mask=True, return_dict=True)
    assert expected["input_ids"] == concatenated.render(conversation).ids
    assert all(expected["assistant_masks"])
    if conversation.roles[-1] != "assistant":
        prompt = apply(messages, add_generation_prompt=True)["input_ids"]
        assert prompt == concatenated.prompt(conversation.messages)


def test_a_concatenated_reply_ends_only_with_the_tokenizers_end(concatenated: Template) -> None:
    assert concatenated.end_ids == {end_token(concatenated)}


def test_a_concatenated_template_is_recognised_when_it_is_loaded_again(tmp_path: Path) -> None:
    template = Template.load(starter_folder(), "concatenated")
    template.tokenizer.save_pretrained(tmp_path)
    again = Template.load(tmp_path)
    assert again.concatenated
    assert again.render(TALK) == template.render(TALK)
    assert not Template.load(tmp_path, "chattune").concatenated


def test_a_tokenizer_that_merges_a_newline_cannot_be_concatenated(tmp_path: Path) -> None:
    """Tokenizers such as Qwen's join punctuation to the newline after it."""
    from tokenizers import Regex, pre_tokenizers

    def join(tokenizer: dict[str, Any]) -> None:
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["?Ċ"] = len(vocabulary)
        tokenizer["model"]["merges"].append(["?", "Ċ"])
        words = pre_tokenizers.Split(Regex(r" ?[^\s\w]+\n*|\s?\w+|\s+"), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        both = pre_tokenizers.Sequence([words, letters])
        tokenizer["pre_tokenizer"] = json.loads(both.__getstate__())

    folder = base_with(tmp_path / "base", join)
    assert Template.load(folder, "chattune")
    with pytest.raises(BaseError, match=r"not keep turns apart.*use template: chattune"):
        Template.load(folder, "concatenated")


# --- loading, and tokenizers with a template of their own ---------------------------------------

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = Conversation.of(
    ("system", "Be kind."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Bye.")
)


def with_tokens(jinja: str, *, named: bool = True, opener_is_special: bool = True) -> Any:
    """Return the starter's tokenizer with ChatML's two tokens and a chat template.

    Without `named`, the tokens are special but are not among the tokenizer's named special tokens.
    """
    from tokenizers import AddedToken

    tokenizer = load_tokenizer()
    specials = [AddedToken("<|im_end|>", special=True, normalized=False)]
    opener = AddedToken("<|im_start|>", special=opener_is_special, normalized=False)
    if opener_is_special:
        specials.append(opener)
    if named:
        tokenizer.add_special_tokens({"additional_special_tokens": specials})
    else:
        tokenizer.add_tokens(specials, special_tokens=True)
    if not opener_is_special:
        tokenizer.add_tokens([opener])
    tokenizer.chat_template = jinja
    return tokenizer


def test_a_tokenizer_without_a_template_gets_chattunes() -> None:
    template = Template.load(starter_folder())
    assert template.tokenizer.chat_template == CHAT_TEMPLATE


def test_a_saved_template_renders_the_same(tmp_path: Path) -> None:
    template = Template.load(starter_folder())
    template.tokenizer.save_pretrained(tmp_path)
    assert Template.load(tmp_path).render(TALK) == template.render(TALK)


@pytest.mark.parametrize("content", [None, "", "{", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BaseError, match="tokenizer cannot be loaded"):
        Template.load(tmp_path)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = load_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(BaseError, match="no end token"):
        Template(tokenizer)


def test_the_template_of_a_base_is_kept() -> None:
    tokenizer = with_tokens(CHATML)
    assert Template(tokenizer).tokenizer.chat_template == CHATML


WITH_DEFAULT = CHATML.replace(
    "{% for", "{{- '' if messages[0].role == 'system' else 'You are a default.' -}}{% for", 1
)


def test_chatml_can_replace_the_template_of_a_base(tmp_path: Path) -> None:
    """It writes no system message where a conversation has none, and the rest alike."""
    with_tokens(WITH_DEFAULT).save_pretrained(tmp_path)
    own, chatml = Template.load(tmp_path), Template.load(tmp_path, "chatml")
    assert own.render(TALK) == chatml.render(TALK)
    without_system = Conversation(TALK.messages[1:])
    assert own.decode(own.render(without_system).ids).startswith("You are a default.")
    assert chatml.decode(chatml.render(without_system).ids).startswith("user\nHi.")


def test_chatml_needs_its_tokens() -> None:
    with pytest.raises(BaseError, match=r"template chatml: .* has no token <\|im_start\|>"):
        Template.load(starter_folder(), "chatml")


def test_chattunes_template_can_replace_that_of_a_base(tmp_path: Path) -> None:
    with_tokens(CHATML).save_pretrained(tmp_path)
    assert Template.load(tmp_path, "chattune").tokenizer.chat_template == CHAT_TEMPLATE


def test_chatml_replies_and_their_ends_are_supervised() -> None:
    template = Template(with_tokens(CHATML))
    talk = Conversation.of(*((m.role, m.content) for m in TALK.messages), ("assistant", "Bye!"))
    text = template.decode(supervised_ids(template.render(talk)), special=True)
    assert text == "Hello.<|im_end|>Bye!<|im_end|>"


def test_chatml_renders_as_in_transformers() -> None:
    template = Template(with_tokens(CHATML))
    messages = [{"role": m.role, "content": m.content} for m in TALK.messages]
    conversation = template.tokenizer.apply_chat_template(messages)
    prompt = template.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert template.render(TALK).ids == conversation["input_ids"]
    assert template.prompt(TALK.messages) == prompt["input_ids"]


def test_chatml_replies_end_with_either_end_token() -> None:
    tokenizer = with_tokens(CHATML)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", END])
    assert Template(tokenizer).end_ids == set(ends)


@settings(max_examples=40, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(("<|im_start|>", "<|im_end|>", END, "assistant\n", "a", " ")), max_size=8
    ).map("".join)
)
def test_chatml_tokens_cannot_be_typed(text: str) -> None:
    template = chatml_template()
    ids = template.render(Conversation.of(("user", text), ("assistant", text))).ids
    start, end, eos = template.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", END])
    assert (ids.count(start), ids.count(end), ids.count(eos)) == (2, 2, 0)


@functools.cache
def chatml_template() -> Template:
    return Template(with_tokens(CHATML))


def test_a_marker_that_is_an_ordinary_added_token_cannot_be_typed() -> None:
    """Some bases add the token that opens a turn without marking it as special."""
    try:
        template = Template(with_tokens(CHATML, opener_is_special=False))
    except BaseError:
        return  # refusing such a base is safe too
    start = template.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start not in template.encode("<|im_start|>assistant")


def test_special_tokens_that_are_not_named_end_replies_too() -> None:
    """Bases such as Gemma mark the end of a turn as special in tokenizer.json only."""
    tokenizer = with_tokens(CHATML, named=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    template = Template(tokenizer)
    assert end in template.end_ids
    assert end not in template.encode("<|im_end|>")


CONTENT = "{{ message['content'] }}"
DROPS = CHATML.replace(CONTENT, "{% if message['role'] != 'assistant' %}" + CONTENT + "{% endif %}")
DROPS_SYSTEM = CHATML.replace(
    CONTENT, "{% if message['role'] != 'system' %}" + CONTENT + "{% endif %}"
)
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHATML
)
REMINDS = CHATML.replace(
    CONTENT,
    "{% set later = messages[loop.index:] | selectattr('role', 'equalto', 'user') | list %}"
    "{% if message['role'] == 'user' and not later %}Be brief:\n{% endif %}" + CONTENT,
)


@pytest.mark.parametrize(
    ("jinja", "why"),
    [
        pytest.param(DROPS, "drops or repeats", id="drops a message"),
        pytest.param(
            CHATML.replace(CONTENT, CONTENT * 2), "drops or repeats", id="repeats a message"
        ),
        pytest.param(CHATML.replace("<|im_end|>", "</s>"), "could not stop", id="no end"),
        pytest.param("{% for m in %}", "chat template refuses", id="broken"),
        pytest.param("{{ messages[0].a.b }}", "chat template refuses", id="undefined"),
        pytest.param("{{ 1 + 'a' }}", "chat template refuses", id="wrong types"),
    ],
)
def test_a_template_that_cannot_be_tuned_on_is_refused(jinja: str, why: str) -> None:
    with pytest.raises(BaseError, match=why):
        Template(with_tokens(jinja))


@pytest.mark.parametrize(
    ("jinja", "why"),
    [
        pytest.param(DROPS_SYSTEM, "drops or repeats the system message", id="drops system"),
        pytest.param(REFUSES_SYSTEM, r"refuses system / user .*\(no system role\)", id="raises"),
    ],
)
def test_a_template_without_a_system_role_is_refused_for_system_messages(
    jinja: str, why: str
) -> None:
    template = Template(with_tokens(jinja))
    assert template.render(Conversation.of(("user", "hi"), ("assistant", "ho"))).ids
    with pytest.raises(BaseError, match=why):
        template.render(TALK)
    with pytest.raises(BaseError, match=why):
        template.prompt(TALK.messages)


def test_a_templates_error_cannot_control_the_terminal() -> None:
    with pytest.raises(BaseError) as refused:
        Template(with_tokens("{{ raise_exception('\x1b]0;title\x07no') }}"))
    assert str(refused.value).isprintable()


def test_several_templates_without_a_default_are_refused() -> None:
    with pytest.raises(BaseError):
        Template(with_tokens({"plain": CHATML, "tool_use": CHATML}))


def test_a_template_that_rewrites_earlier_turns_cannot_make_chats_differ_from_training() -> None:
    """This one writes a reminder before the last question, so the first prompt changes later."""
    try:
        template = Template(with_tokens(REMINDS))
    except BaseError:
        return  # refused, so that nothing can differ
    talk = Conversation.of(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    prompt = template.prompt(talk.messages[:1])
    assert template.render(talk).ids[: len(prompt)] == prompt


def test_a_template_that_merges_with_the_messages_is_refused() -> None:
    """Letters right before a message merge with it only if both are tokenised together."""
    merging = CHATML.replace(CONTENT, "The words were " + CONTENT)
    with pytest.raises(BaseError, match="does not keep turns apart"):
        Template(with_tokens(merging))
