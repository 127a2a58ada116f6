"""The reference engine: any transformers model, with the model's own cache.

The logits pass through transformers' processors, so replies have the same distribution as those of
`model.generate`. Each prompt has a random generator of its own, so that a seed gives the same reply
whatever is decoded beside it, but for rounding.
"""

import logging
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chattune.base import DEFAULT_POSITIONS
from chattune.errors import ChatError
from chattune.generate.decoding import Decoding
from chattune.generate.padded import PaddedBatch, padding_problem

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# The most prompts that are decoded together. SmolLM2 in fp32 on one core of a CPU wrote 6 tokens a
# second alone, 12 with 4 rows, 18 with 8, 25 with 16 and 31 with 32 (32 prompts of about 45 tokens,
# 16 new ones each). More rows than 16 gain little there, and each has a cache in the memory that
# the machine needs for other things too; a GPU that runs out of memory is given fewer.
_ROWS_ON_CPU, _ROWS_ON_GPU = 16, 64

log = logging.getLogger(__name__)


class _Request:
    """A prompt that waits or is being answered.

    `ids` are the prompt and the reply so far. The reply ends with an end token, or when there are
    `end` ids. Raises ChatError for a prompt that is empty or longer than the model's positions.
    """

    def __init__(
        self, index: int, prompt: Sequence[int], decoding: Decoding, positions: int
    ) -> None:
        if not 0 < len(prompt) <= positions:
            raise ChatError(f"a prompt of {len(prompt)} tokens; the model takes 1 to {positions}")
        self.index, self.decoding, self.ids = index, decoding, list(prompt)
        free = max(1, positions - len(prompt))  # the last token's logits need no position
        self.end = len(prompt) + min(decoding.max_new_tokens, free)
        self.processors = _processors(decoding)
        self.random = torch.Generator()
        if decoding.seed is None:
            self.random.seed()
        else:
            self.random.manual_seed(decoding.seed)


class ReferenceEngine:
    """An engine that runs a transformers model and decodes many prompts together; see Engine.

    A model that does not compute padded rows exactly answers one prompt after the other.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", end_ids: Collection[int]) -> None:
        self.at_once = 1
        self._model = model.eval()
        self._end_ids = frozenset(end_ids)
        self._rows: int | None = None  # the most rows of a batch; None until the model is probed
        config = model.config.get_text_config()
        self._positions = getattr(config, "max_position_embeddings", None) or DEFAULT_POSITIONS

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding | Sequence[Decoding]
    ) -> Iterator[tuple[int, int]]:
        """Yield (index of prompt, token id); see Engine. Takes one Decoding, or one per prompt.

        The longest prompts come first, because memory then runs out early or never. When half of a
        batch has ended, waiting prompts take its place; the batch is then computed anew, which any
        kind of cache allows. Raises ChatError for a prompt that is empty or longer than the model's
        positions, and if the model computes NaN.
        """
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else decoding
        requests = [
            _Request(index, prompt, settings, self._positions)
            for index, (prompt, settings) in enumerate(zip(prompts, decodings, strict=True))
        ]
        waiting = deque(sorted(requests, key=lambda request: len(request.ids), reverse=True))
        running: list[_Request] = []
        batch: PaddedBatch | None = None
        rows = self._most_rows() if len(requests) > 1 else 1
        while waiting or running:
            half_empty = len(running) <= rows // 2
            if batch is None or batch.length > self._positions or (waiting and half_empty):
                new = min(rows - len(running), len(waiting))
                running += [waiting.popleft() for _ in range(new)]
                batch = PaddedBatch(self._model, [request.ids for request in running])
            tokens = self._step(batch, running)
            if tokens is None:  # out of memory
                waiting.extendleft(reversed(running))
                tried, running, batch = len(running), [], None
                rows = self._rows = self._fewer(tried)
                continue
            for request, token in zip(running, tokens, strict=True):
                request.ids.append(token)
                yield request.index, token
            kept = [i for i, request in enumerate(running) if not self._has_ended(request)]
            running = [running[i] for i in kept]
            if running:
                batch.advance(kept, [tokens[i] for i in kept])

    def _most_rows(self) -> int:
        """Return how many prompts to decode together; probe the model at the first call."""
        if self._rows is None:
            self._rows = _ROWS_ON_CPU if self._model.device.type == "cpu" else _ROWS_ON_GPU
            if problem := padding_problem(self._model):
                log.warning("prompts are answered one after the other: this model %s", problem)
                self._rows = 1
        return self._rows

    @torch.inference_mode()
    def _step(self, batch: PaddedBatch, requests: Sequence[_Request]) -> list[int] | None:
        """Return the next token of each request, or None if the GPU has too little memory.

        No random number is drawn before the memory has sufficed.
        """
        try:
            logits = batch.logits()
            scores = torch.cat(
                [
                    request.processors(batch.row(i), logits[i : i + 1])
                    for i, request in enumerate(requests)
                ]
            )
            if scores.isnan().any():
                raise ChatError(
                    "the model computes NaN instead of logits; its weights are damaged, or its "
                    "training diverged"
                )
            return _choose(scores, requests)
        except torch.OutOfMemoryError:
            return None

    def _fewer(self, rows: int) -> int:
        """Return how many rows to try after a batch of `rows` ran out of memory, and free memory.

        Raises ChatError if that was a single row.
        """
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        if rows == 1:
            raise ChatError(
                "the GPU has too little memory for this prompt; shorten it, or the reply "
                "(max_new_tokens), or use a smaller model"
            )
        log.warning("out of memory: going on with %d prompts together", rows // 2)
        return rows // 2

    def _has_ended(self, request: _Request) -> bool:
        return request.ids[-1] in self._end_ids or len(request.ids) >= request.end


def _processors(decoding: Decoding) -> LogitsProcessorList:
    """Return the processors that the parameters ask for, in the order of `model.generate`."""
    processors = LogitsProcessorList()
    if decoding.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
    if decoding.no_repeat_ngram:
        processors.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram))
    if decoding.greedy:
        return processors
    processors.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k > 0:
        processors.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        processors.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p > 0:
        processors.append(MinPLogitsWarper(decoding.min_p))
    return processors


def _choose(scores: torch.Tensor, requests: Sequence[_Request]) -> list[int]:
    """Return the token that each request draws from its row of the scores (rows, vocabulary)."""
    tokens: list[int] = scores.argmax(dim=-1).tolist()
    sampled = [i for i, request in enumerate(requests) if not request.decoding.greedy]
    # Sampling on the CPU gives the same tokens for a seed on every device.
    probabilities = scores[sampled].softmax(dim=-1).cpu()
    for i, row in zip(sampled, probabilities, strict=True):
        tokens[i] = int(torch.multinomial(row[None], 1, generator=requests[i].random))
    return tokens
