"""Message and Conversation: the frozen values that every stage takes and gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, with its text unchanged."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """An optional system message, followed by user and assistant messages in turn."""

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, *turns: tuple[Role, str]) -> "Conversation":
        """Build a conversation from (role, text) pairs."""
        return cls(tuple(Message(role, content) for role, content in turns))

    @property
    def roles(self) -> tuple[Role, ...]:
        """The role of each message, in order."""
        return tuple(message.role for message in self.messages)

    @property
    def opening(self) -> str:
        """The first user message, or an empty string if there is none."""
        return next((m.content for m in self.messages if m.role == "user"), "")


def alternates(roles: Sequence[Role]) -> bool:
    """Return whether the roles are an optional system, then user, assistant, user, and so on."""
    turns = roles[1:] if roles[:1] == ("system",) else roles
    return all(role == ("user", "assistant")[i % 2] for i, role in enumerate(turns))
