"""Message and Conversation: frozen values, the only currency between stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Message:
    """What one side said, as it was said."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """An optional system message, then user and assistant in turn."""

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, *turns: tuple[Role, str]) -> "Conversation":
        """Build one from (role, words) pairs."""
        return cls(tuple(Message(role, content) for role, content in turns))

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles in order."""
        return tuple(message.role for message in self.messages)

    @property
    def opening(self) -> str:
        """What the person asked first, after the system message if there is one."""
        return next((m.content for m in self.messages if m.role == "user"), "")


def alternates(roles: Sequence[Role]) -> bool:
    """Whether an optional system role is followed by user, assistant, user, ... ."""
    turns = roles[1:] if roles[:1] == ("system",) else roles
    return all(role == ("user", "assistant")[i % 2] for i, role in enumerate(turns))
