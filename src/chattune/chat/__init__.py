"""Chatting: a `Chatbot` keeps one conversation with a model and streams its replies."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from chattune.conversation import Message
from chattune.errors import ChatError
from chattune.generate import Decoding, Engine
from chattune.generate.finish import finish_reply
from chattune.generate.reply import Reply
from chattune.template import Template

__all__ = ["Chatbot", "Reply"]

_MIN_REPLY = 16  # the tokens that a prompt must leave free, even for a reply that may be longer


class Chatbot:
    """One conversation with a model.

    `messages` is the history, oldest first, without the system prompt. `positions` is the number of
    tokens that a prompt and its reply may have together.
    """

    def __init__(
        self,
        engine: Engine,
        template: Template,
        positions: int,
        *,
        decoding: Decoding | None = None,
        system: str | None = None,
        messages: Sequence[Message] = (),
    ) -> None:
        self.engine, self.template, self.positions = engine, template, positions
        self.decoding = decoding or Decoding()
        self.system = system
        self.messages = list(messages)

    @classmethod
    def load(
        cls,
        run_or_model: str | Path,
        *,
        system: str | None = None,
        engine: str = "auto",
        quantize: str = "auto",
        base: str | Path | None = None,
    ) -> Self:
        """Load a run folder, a model folder, a Hub id or `starter`; see `load_engine`.

        `base` is the folder or Hub id where a run's base is now, if it has moved. Replies are
        sampled with the parameters that the model's generation_config.json recommends. Raises
        TypeError for anything that is neither a path nor a name.
        """
        from chattune.generate.load import load_engine

        if not isinstance(run_or_model, str | Path):
            raise TypeError(
                "run_or_model: give a run folder, a model folder, a Hub id or `starter`, not "
                f"{run_or_model!r:.80}"
            )
        place = None if base is None else str(base)
        model = load_engine(run_or_model, engine=engine, quantize=quantize, base=place)
        return cls(
            model.engine, model.template, model.positions, decoding=model.decoding, system=system
        )

    def fresh(self, *, system: str | None = None, messages: Sequence[Message] = ()) -> Self:
        """Return another conversation with the same model and decoding parameters."""
        other = copy.copy(self)
        other.system, other.messages = system, list(messages)
        return other

    def reply(self, text: str, decoding: Decoding | None = None) -> Reply:
        """Answer a message and add both to the history.

        Raises ChatError if the message is empty, or too long for the model, and TypeError if it is
        not a string.
        """
        *_, reply = self._answer(text, decoding)
        assert isinstance(reply, Reply)
        return reply

    def stream(self, text: str, decoding: Decoding | None = None) -> Iterator[str]:
        """Answer a message like `reply`, and yield the answer in pieces as it is generated.

        Text that `decoding.finish` may still leave out is held back. Closing the iterator stops the
        reply; the history keeps the part that was yielded.
        """
        return (piece for piece in self._answer(text, decoding) if isinstance(piece, str))

    def reset(self) -> None:
        """Forget the conversation, but keep the system prompt and the decoding parameters."""
        self.messages.clear()

    def _answer(self, text: str, decoding: Decoding | None) -> Iterator[str | Reply]:
        """Yield the pieces of the answer, then the Reply, and add both messages to the history."""
        if not isinstance(text, str):
            raise TypeError(f"message: give a string, not {text!r:.80}")
        decoding = self.decoding if decoding is None else decoding
        if not isinstance(decoding, Decoding):
            raise TypeError(
                "decoding: give a Decoding, such as bot.decoding.but(temperature=0.5), not "
                f"{decoding!r:.80}"
            )
        if not text.strip():
            raise ChatError("the message is empty; write something")
        messages = [*self.messages, Message("user", text)]
        prompt = fit_prompt(self.template, self.system, messages, self.positions, decoding)
        free = self.positions - len(prompt)
        most, limit = min(decoding.most_tokens, free), min(decoding.max_new_tokens, free)
        tokens = self.engine.generate([prompt], decoding.but(max_new_tokens=most))
        finished = finish_reply(
            (t for _, t in tokens), self.template, decoding.but(max_new_tokens=limit)
        )
        answer = ""
        try:
            for piece in finished:
                if isinstance(piece, str):
                    answer += piece
                yield piece
        finally:
            # A reply that was stopped before its first word leaves the history as it was.
            if answer.strip():
                self.messages = [*messages, Message("assistant", answer.strip())]


def fit_prompt(
    template: Template,
    system: str | None,
    messages: Sequence[Message],
    positions: int,
    decoding: Decoding,
) -> list[int]:
    """Return the prompt's token ids, without the oldest turns if they do not fit `positions`.

    A turn is a question with its answer. The system prompt and the last message always stay. The
    prompt leaves `decoding.most_tokens` positions for the reply, or half of all positions if that
    is less. A last message that is too long for that gets a shorter reply; ChatError is raised if
    it is too long for any.
    """
    head = [Message("system", system)] if system and system.strip() else []
    budget = min(decoding.most_tokens, positions // 2)
    turns = list(messages)
    prompt = template.prompt([*head, *turns])
    while len(prompt) + budget > positions and len(turns) > 1:
        turns = turns[2:] or turns[-1:]
        prompt = template.prompt([*head, *turns])
    if len(prompt) + min(budget, _MIN_REPLY) <= positions:
        return prompt
    raise ChatError(
        f"the message is too long: with the system prompt it takes {len(prompt)} tokens, and this "
        f"model sees {positions}, reply included; shorten it"
    )
