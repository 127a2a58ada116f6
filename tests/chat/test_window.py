"""What the model still sees of a long conversation: whole turns, the oldest dropped first."""

import pytest

from chattune.base import starter_folder
from chattune.chat.window import fit_prompt
from chattune.conversation import Message, Role
from chattune.errors import ChatError
from chattune.generate import Decoding
from chattune.template import Template


@pytest.fixture(scope="module")
def template() -> Template:
    return Template.load(starter_folder())


def history(questions: int, words: str = "and then what happened") -> list[Message]:
    """So many questions, all but the last answered; each can be told by its number."""
    said: list[tuple[Role, str]] = []
    for i in range(questions):
        said += [("user", f"question {i} {words}"), ("assistant", f"answer {i} {words}")]
    return [Message(role, text) for role, text in said[:-1]]


def test_what_fits_is_left_alone(template: Template) -> None:
    messages = history(3)
    prompt = fit_prompt(template, None, messages, 512, Decoding(max_new_tokens=64))
    assert prompt == template.prompt(messages)


@pytest.mark.parametrize("positions", [60, 80, 100, 150, 200, 300])
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_as_many_whole_turns_stay_as_fit(
    template: Template, positions: int, system: str | None
) -> None:
    messages, decoding = history(12), Decoding(max_new_tokens=20)
    head = [Message("system", system)] if system else []
    prompt = fit_prompt(template, system, messages, positions, decoding)
    newest = {i: template.prompt([*head, *messages[i:]]) for i in range(0, len(messages), 2)}
    kept = [i for i, ids in newest.items() if ids == prompt]
    assert len(kept) == 1, "a prompt of the newest whole turns"
    assert len(prompt) + 20 <= positions
    assert kept == [0] or len(newest[kept[0] - 2]) + 20 > positions


def test_the_system_prompt_stays_when_turns_go(template: Template) -> None:
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
    asked = [Message("user", "why " * 80)]
    length = len(template.prompt(asked))
    assert length > 60
    prompt = fit_prompt(template, None, asked, length + 16, Decoding())
    assert prompt == template.prompt(asked)


def test_the_last_message_too_long_is_refused(template: Template) -> None:
    asked = [*history(3), Message("user", "why " * 80)]
    length = len(template.prompt(asked[-1:]))
    with pytest.raises(ChatError) as caught:
        fit_prompt(template, None, asked, length + 15, Decoding())
    said = str(caught.value)
    assert said.startswith("the message is too long")
    assert str(length) in said
    assert str(length + 15) in said
    assert "shorten it" in said


def test_a_system_prompt_too_long_is_refused(template: Template) -> None:
    with pytest.raises(ChatError, match="with the system prompt"):
        fit_prompt(template, "be kind " * 100, history(1), 128, Decoding())


def test_the_messages_given_are_not_changed(template: Template) -> None:
    messages = history(30)
    fit_prompt(template, None, messages, 128, Decoding())
    assert messages == history(30)
