"""Engines write tokens; everything above them is the same for each.

An engine is whatever has this `generate`: the fast one (GPT-Neo), the reference (any transformers
model), or the scripted one, which needs no torch.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from chattune.generate.decoding import Decoding

__all__ = ["Decoding", "Engine"]


class Engine(Protocol):
    """Writes tokens after prompts; `at_once` is how many threads may ask for some together."""

    at_once: int

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> Iterator[tuple[int, int]]:
        """Yield (index of prompt, token id) as tokens come, the end token included.

        A reply is over with an end token, after `max_new_tokens` or at the model's last position;
        closing the iterator stops the work.
        """
        ...
