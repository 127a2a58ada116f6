"""The reference engine: any transformers model, one token at a time, with its own cache.

The filters are transformers' logits processors, so a reply is drawn from the same distribution as
`model.generate` draws from; the random numbers are each request's own, so a seed gives the same
reply whoever else is being answered.
"""

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

from chattune.generate.decoding import Decoding

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class ReferenceEngine:
    """Generates with a model as it is; prompts are answered one after the other."""

    def __init__(self, model: "PreTrainedModel | PeftModel", end_ids: Collection[int]) -> None:
        self.at_once = 1
        self._model = model.eval()
        self._end_ids = frozenset(end_ids)

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> Iterator[tuple[int, int]]:
        """Yield (index of prompt, token id); see Engine."""
        for index, prompt in enumerate(prompts):
            for token in self._one(prompt, decoding):
                yield index, token

    def _one(self, prompt: Sequence[int], decoding: Decoding) -> Iterator[int]:
        device = self._model.device
        processors = _processors(decoding)
        random = torch.Generator()
        random.manual_seed(decoding.seed) if decoding.seed is not None else random.seed()
        ids = torch.tensor([list(prompt)], device=device)
        fresh, cache = ids, None
        for _ in range(decoding.max_new_tokens):
            with torch.inference_mode():
                out = self._model(fresh, past_key_values=cache, use_cache=True, logits_to_keep=1)
                scores = processors(ids, out.logits[:, -1].float())
                fresh = _draw(scores, decoding, random).to(device)
            ids, cache = torch.cat([ids, fresh], dim=1), out.past_key_values
            token = int(fresh)
            yield token
            if token in self._end_ids:
                return


def _processors(decoding: Decoding) -> LogitsProcessorList:
    """In the order of `model.generate`."""
    chosen = LogitsProcessorList()
    if decoding.repetition_penalty != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty))
    if decoding.no_repeat_ngram:
        chosen.append(NoRepeatNGramLogitsProcessor(decoding.no_repeat_ngram))
    if decoding.greedy:
        return chosen
    chosen.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k > 0:
        chosen.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        chosen.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p > 0:
        chosen.append(MinPLogitsWarper(decoding.min_p))
    return chosen


def _draw(scores: torch.Tensor, decoding: Decoding, random: torch.Generator) -> torch.Tensor:
    if decoding.greedy:
        return scores.argmax(dim=-1, keepdim=True)
    # Drawn on the CPU: a seed then gives the same numbers on every device.
    return torch.multinomial(scores.softmax(dim=-1).cpu(), 1, generator=random)
