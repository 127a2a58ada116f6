"""The scripted engine: it replays given replies, so that chat and page can run without a model."""

from collections.abc import Iterator, Sequence

from chattune.generate.decoding import Decoding


class ScriptedEngine:
    """An engine that answers each prompt with the next of `replies`, over and over.

    `replies` holds token ids; `prompts` records the prompts in the order in which they came.
    """

    def __init__(self, replies: Sequence[Sequence[int]]) -> None:
        self.at_once = 1
        self._replies = replies
        self.prompts: list[list[int]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding | Sequence[Decoding]
    ) -> Iterator[tuple[int, int]]:
        """Yield (index of prompt, token id); see Engine."""
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else decoding
        for index, (prompt, settings) in enumerate(zip(prompts, decodings, strict=True)):
            reply = self._replies[len(self.prompts) % len(self._replies)]
            self.prompts.append(list(prompt))
            for token in reply[: settings.max_new_tokens]:
                yield index, token
