"""The reference engine: any transformers model, one token at a time, with the model's own cache.

The logits pass through transformers' processors, so replies have the same distribution as those of
`model.generate`. Each request has a random generator of its own, so that a seed gives the same
reply whatever else is generated.
"""

import inspect
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

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class ReferenceEngine:
    """An engine that runs a transformers model and answers prompts one after the other."""

    def __init__(self, model: "PreTrainedModel | PeftModel", end_ids: Collection[int]) -> None:
        self.at_once = 1
        self._model = model.eval()
        self._end_ids = frozenset(end_ids)
        self._cache_name = _cache_name(model)
        config = model.config.get_text_config()
        self._positions = getattr(config, "max_position_embeddings", None) or DEFAULT_POSITIONS

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding | Sequence[Decoding]
    ) -> Iterator[tuple[int, int]]:
        """Yield (index of prompt, token id); see Engine.

        Raises ChatError for a prompt that is empty or longer than the model's positions, and if the
        model computes NaN.
        """
        for prompt in prompts:
            if not 0 < len(prompt) <= self._positions:
                raise ChatError(
                    f"a prompt of {len(prompt)} tokens; the model takes 1 to {self._positions}"
                )
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else decoding
        for index, (prompt, settings) in enumerate(zip(prompts, decodings, strict=True)):
            for token in self._generate_one(prompt, settings):
                yield index, token

    def _generate_one(self, prompt: Sequence[int], decoding: Decoding) -> Iterator[int]:
        device = self._model.device
        processors = _processors(decoding)
        random = torch.Generator()
        random.manual_seed(decoding.seed) if decoding.seed is not None else random.seed()
        ids = torch.tensor([list(prompt)], device=device)
        new, cache = ids, None  # the ids that the cache does not cover yet
        free = max(1, self._positions - len(prompt))  # the last token's logits need no position
        for _ in range(min(decoding.max_new_tokens, free)):
            with torch.inference_mode():
                cached = {self._cache_name: cache}
                out = self._model(new, **cached, use_cache=True, logits_to_keep=1)
                scores = processors(ids, out.logits[:, -1].float())
                if scores.isnan().any():
                    raise ChatError(
                        "the model computes NaN instead of logits; its weights are damaged, or its "
                        "training diverged"
                    )
                new = _choose(scores, decoding, random).to(device)
            ids, cache = torch.cat([ids, new], dim=1), out[self._cache_name]
            token = int(new)
            yield token
            if token in self._end_ids:
                return


def _cache_name(model: "PreTrainedModel | PeftModel") -> str:
    """Return the name of a model's cache, as an argument and in its output.

    Recent releases of transformers call every cache `cache`. In older ones it is `past_key_values`,
    and `cache_params` in state-space models.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    arguments = inspect.signature(inner.forward).parameters
    names = ("cache", "past_key_values", "cache_params")
    return next((name for name in names if name in arguments), names[0])


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
