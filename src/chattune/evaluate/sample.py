"""Sample: one reply of a model, with everything that a judgement of it needs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from chattune.conversation import Message


@dataclass(frozen=True)
class Sample:
    """One reply, and the messages that it answers.

    `prompt` is the name of its prompt, with that of the set (`general/advice-3`). `turn` counts the
    model's replies in the conversation from 1. `messages` are all messages before the reply, the
    system message included; their last one is the user's. In `reply`, special tokens are spelled
    out, except the one that ended it. `tokens` counts the reply's tokens with its end token, and
    `stopped` says whether there is one; both are None for a reply whose tokens are not known.
    `reference` is a reply that somebody else gave. A right reply has one text of each tuple of
    `required`, and none of `forbidden`.
    """

    prompt: str
    kind: str
    turn: int
    seed: int
    messages: tuple[Message, ...]
    reply: str
    tokens: int | None = None
    stopped: bool | None = None
    reference: str | None = None
    required: tuple[tuple[str, ...], ...] = ()
    forbidden: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The user's message that the reply answers."""
        return self.messages[-1].content

    @property
    def key(self) -> tuple[str, int, int]:
        """Prompt, seed and turn, which only one sample of an evaluation has."""
        return self.prompt, self.seed, self.turn

    def to_json(self) -> dict[str, Any]:
        """Return the sample as a dictionary that can be written as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Build a sample from parsed JSON; raises TypeError or KeyError for another row."""
        return cls(
            **{
                **row,
                "messages": tuple(Message(**message) for message in row["messages"]),
                "required": tuple(tuple(group) for group in row.get("required", ())),
                "forbidden": tuple(row.get("forbidden", ())),
            }
        )
