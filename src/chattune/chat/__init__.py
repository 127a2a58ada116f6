"""Chatbot: a history, a message, a streamed reply."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from chattune.chat.window import fit_prompt
from chattune.conversation import Message
from chattune.errors import ChatError
from chattune.generate import Decoding, Engine
from chattune.generate.finish import Reply, read_reply
from chattune.template import Template

__all__ = ["Chatbot", "Reply"]


class Chatbot:
    """One conversation with a model.

    `messages` is the history, oldest first, without the system prompt. A reply that was stopped
    half-way stays in the history as far as it came.
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
    ) -> Self:
        """Load a run folder, a model folder, a Hub id or `starter`; see load_engine.

        Replies are drawn as its generation_config.json recommends.
        """
        from chattune.generate.load import load_engine

        loaded = load_engine(run_or_model, engine=engine, quantize=quantize)
        return cls(
            loaded.engine,
            loaded.template,
            loaded.positions,
            decoding=loaded.decoding,
            system=system,
        )

    def fresh(self, *, system: str | None = None, messages: Sequence[Message] = ()) -> "Chatbot":
        """Another conversation with the same model."""
        return Chatbot(
            self.engine,
            self.template,
            self.positions,
            decoding=self.decoding,
            system=system,
            messages=messages,
        )

    def reply(self, text: str, decoding: Decoding | None = None) -> Reply:
        """Answer a message; both join the history.

        Raises ChatError for an empty message, or one too long for the model.
        """
        for piece in self._converse(text, decoding):
            if isinstance(piece, Reply):
                return piece
        raise AssertionError("an engine's tokens end in a Reply")

    def stream(self, text: str, decoding: Decoding | None = None) -> Iterator[str]:
        """Answer a message piece by piece; stop by closing the iterator."""
        return (piece for piece in self._converse(text, decoding) if isinstance(piece, str))

    def reset(self) -> None:
        """Forget the conversation; system prompt and settings stay."""
        self.messages.clear()

    def _converse(self, text: str, decoding: Decoding | None) -> Iterator[str | Reply]:
        decoding = decoding or self.decoding
        if not text.strip():
            raise ChatError("the message is empty; write something")
        asked = [*self.messages, Message("user", text)]
        prompt = fit_prompt(self.template, self.system, asked, self.positions, decoding)
        room = min(decoding.max_new_tokens, self.positions - len(prompt))
        tokens = self.engine.generate([prompt], decoding.but(max_new_tokens=room))
        said = ""
        try:
            for piece in read_reply((t for _, t in tokens), self.template, decoding.stop):
                if isinstance(piece, str):
                    said += piece
                yield piece
        finally:
            if said.strip():  # a reply stopped before its first word leaves no trace
                self.messages = [*asked, Message("assistant", said.strip())]
