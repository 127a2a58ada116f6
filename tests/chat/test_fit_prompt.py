"""Tests of fit_prompt: it drops whole turns from a long conversation, the oldest first."""

import pytest

from chattune.base import starter_folder
from chattune.chat import fit_prompt
from chattune.conversation import Message, Role
from chattune.errors import ChatError
from chattune.generate import Decoding
from chattune.template import Template


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.load(starter_folder())


def history(questions: int) -> list[Message]:
    """Return that many numbered questions, all but the last with an answer."""
    text = "and then what happened"
    turns: list[tuple[Role, str]] = []
    for i in range(questions):
        turns += [("user", f"question {i} {text}"), ("assistant", f"answer {i} {text}")]
    return [Message(role, text) for role, text in turns[:-1]]


def test_a_conversation_that_fits_is_kept_whole(template: Template) -> None:
    messages = history(3)
    prompt = fit_prompt(template, None, messages, 512, Decoding(max_new_tokens=64))
    assert prompt == template.prompt(messages)


@pytest.mark.parametrize("positions", [60, 80, 100, 150, 200, 300])
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_as_many_whole_turns_are_kept_as_fit(
    template: Template, positions: int, system: str | None
) -> None:
    messages, decoding = history(12), Decoding(max_new_tokens=20)
    head = [Message("system", system)] if system else []
    prompt = fit_prompt(template, system, messages, positions, decoding)
    newest = {i: template.prompt([*head, *messages[i:]]) for i in range(0, len(messages), 2)}
    kept = [i for i, ids in newest.items() if ids == prompt]
    assert len(kept) == 1, "the prompt holds the newest whole turns"
    assert len(prompt) + 20 <= positions
    assert kept == [0] or len(newest[kept[0] - 2]) + 20 > positions


def test_the_system_prompt_stays_when_turns_are_dropped(template: Template) -> None:
    prompt = fit_prompt(template, "Speak like a pirate.", history(30), 128, Decoding())
    text = template.decode(prompt)
    assert text.startswith("### System:\nSpeak like a pirate.")
    assert "question 29" in text
    assert "question 0 " not in text


@pytest.mark.parametrize("system", [None, "", " \n"])
def test_no_system_prompt_leaves_no_system_turn(template: Template, system: str | None) -> None:
    messages = history(1)
    assert fit_prompt(template, system, messages, 512, Decoding()) == template.prompt(messages)


def test_a_long_reply_may_take_half_of_the_positions_at_most(template: Template) -> None:
    prompt = fit_prompt(template, None, history(30), 200, Decoding(max_new_tokens=10_000))
    assert 50 < len(prompt) <= 100


def test_a_long_question_gets_a_shorter_answer(template: Template) -> None:
    question = [Message("user", "why " * 80)]
    length = len(template.prompt(question))
    assert length > 60
    prompt = fit_prompt(template, None, question, length + 16, Decoding())
    assert prompt == template.prompt(question)


def test_a_last_message_too_long_is_refused(template: Template) -> None:
    question = [*history(3), Message("user", "why " * 80)]
    length = len(template.prompt(question[-1:]))
    with pytest.raises(ChatError) as caught:
        fit_prompt(template, None, question, length + 15, Decoding())
    message = str(caught.value)
    assert message.startswith("the message is too long")
    assert str(length) in message
    assert str(length + 15) in message
    assert "shorten it" in message


def test_a_system_prompt_too_long_is_refused(template: Template) -> None:
    with pytest.raises(ChatError, match="with the system prompt"):
        fit_prompt(template, "be kind " * 100, history(1), 128, Decoding())


def test_the_list_of_messages_is_not_changed(template: Template) -> None:
    messages = history(30)
    fit_prompt(template, None, messages, 128, Decoding())
    assert messages == history(30)
