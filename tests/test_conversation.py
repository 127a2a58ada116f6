"""Tests of messages and conversations, which are frozen values."""

import dataclasses
from typing import get_args

import pytest

from chattune.conversation import Conversation, Message, Role, alternates

TALK = Conversation.of(("system", "Be kind."), ("user", "Hi."), ("assistant", "Hello."))


def test_of_keeps_roles_and_texts_unchanged() -> None:
    conversation = Conversation.of(("user", "  Hi.\n"))
    assert conversation.messages == (Message("user", "  Hi.\n"),)


def test_roles_come_in_order() -> None:
    assert TALK.roles == ("system", "user", "assistant")


def test_there_are_three_roles() -> None:
    assert get_args(Role) == ("system", "user", "assistant")


@pytest.mark.parametrize(
    ("talk", "opening"),
    [
        (TALK, "Hi."),
        (Conversation.of(("user", "First."), ("assistant", "a"), ("user", "Second.")), "First."),
        (Conversation.of(("system", "alone")), ""),
        (Conversation(()), ""),
    ],
)
def test_opening_is_the_first_question(talk: Conversation, opening: str) -> None:
    assert talk.opening == opening


def test_conversations_with_equal_messages_are_equal() -> None:
    again = Conversation.of(*((m.role, m.content) for m in TALK.messages))
    assert again == TALK
    assert hash(again) == hash(TALK)


def test_messages_and_conversations_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TALK.messages = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        TALK.messages[0].content = "Be rude."  # type: ignore[misc]


@pytest.mark.parametrize(
    ("roles", "right"),
    [
        ((), True),
        (("system",), True),
        (("user",), True),
        (("user", "assistant"), True),
        (("system", "user", "assistant", "user"), True),
        (("assistant",), False),
        (("assistant", "user"), False),
        (("user", "user"), False),
        (("user", "assistant", "assistant"), False),
        (("system", "assistant"), False),
        (("system", "system", "user"), False),
        (("user", "system", "assistant"), False),
    ],
)
def test_turns_alternate_after_an_optional_system_message(roles: tuple, right: bool) -> None:
    assert alternates(roles) is right
