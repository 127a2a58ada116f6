"""The reference engine: any transformers model, one token at a time, with the model's own cache.

The logits pass through transformers' processors, so replies have the same distribution as those of
`model.generate`. Each request has a random generator of its own, so that a seed gives the same
reply whatever else is generated.
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
    """An engine that runs a transformers model and answers prompts one after the other."""

    def __init__(self, model: "PreTrainedModel | PeftModel", end_ids: Collection[int]) -> None:
        self.at_once = 1
        self._model = model.eval()
        self._end_ids = frozenset(end_ids)

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding
    ) -> Iterator[tuple[int, int]]:
        """Yield (index of prompt, token id); see Engine."""
        for index, prompt in enumerate(prompts):
            for token in self._generate_one(prompt, decoding):
                yield index, token

    def _generate_one(self, prompt: Sequence[int], decoding: Decoding) -> Iterator[int]:
        device = self._model.device
        processors = _processors(decoding)
        random = torch.Generator()
        random.manual_seed(decoding.seed) if decoding.seed is not None else random.seed()
        ids = torch.tensor([list(prompt)], device=device)
        new, cache = ids, None  # the ids that the cache does not cover yet
        for _ in range(decoding.max_new_tokens):
            with torch.inference_mode():
                out = self._model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
                scores = processors(ids, out.logits[:, -1].float())
                new = _choose(scores, decoding, random).to(device)
            ids, cache = torch.cat([ids, new], dim=1), out.past_key_values
            token = int(new)
            yield token
            if token in self._end_ids:
                return


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


def _choose(scores: torch.Tensor, decoding: Decoding, random: torch.Generator) -> torch.Tensor:
    if decoding.greedy:
        return scores.argmax(dim=-1, keepdim=True)
    # Sampling on the CPU gives the same tokens for a seed on every device.
    return torch.multinomial(scores.softmax(dim=-1).cpu(), 1, generator=random)
