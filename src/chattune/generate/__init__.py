"""Generation: engines turn prompts into tokens, and the rest of chattune works with any of them.

There are three engines: the fast one (model families with a wing, on a CPU), the reference (any
transformers model) and the scripted one, which replays given tokens and needs no torch.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from chattune.generate.decoding import Decoding

__all__ = ["Decoding", "Engine"]


class Engine(Protocol):
    """A generator of replies; `at_once` is how many threads may call it at the same time."""

    at_once: int

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding | Sequence[Decoding]
    ) -> Iterator[tuple[int, int]]:
        """Yield (index of prompt, token id) for each new token, end tokens included.

        `decoding` is one for all prompts, or one for each. A reply ends with an end token, after
        `max_new_tokens` or at the model's last position. Closing the iterator stops the generation.
        """
        ...
