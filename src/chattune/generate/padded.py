"""A padded batch: sequences of different lengths that a transformers model continues together."""

import inspect
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from chattune.errors import first_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Largest difference between the logits of a padded row and of the same row alone, relative to the
# largest logit. bf16 has 8 significant bits, and its rounding errors add up over the layers.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


class PaddedBatch:
    """Rows of token ids that a model continues together, with its cache.

    Shorter rows are padded on the left, so that the last token of every row is in the last column.
    An attention mask hides the padding, and position ids count from each row's first token. Without
    padding the model gets neither, as in any other forward pass.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", rows: Sequence[Sequence[int]]) -> None:
        longest = max(map(len, rows))
        self._model = model
        self._padding = [longest - len(row) for row in rows]
        self._ids = torch.tensor(
            [[0] * padding + list(row) for padding, row in zip(self._padding, rows, strict=True)],
            device=model.device,
        )
        columns = torch.arange(longest, device=model.device)
        self._mask = (columns >= torch.tensor(self._padding, device=model.device)[:, None]).long()
        self._cache: Any = None
        self._cached = 0  # the number of columns that the cache covers
        self._kept: torch.Tensor | None = None  # the rows of the cache that are still to be chosen
        arguments = _arguments(model)
        self._cache_name = _cache_name(arguments)
        self._takes_positions = "position_ids" in arguments

    @property
    def length(self) -> int:
        """The number of tokens of each row, padding included."""
        return self._ids.shape[1]

    def row(self, index: int) -> torch.Tensor:
        """Return the token ids of a row without its padding, (1, length)."""
        return self._ids[index : index + 1, self._padding[index] :]

    def logits(self) -> torch.Tensor:
        """Compute what is new since the last call; return the logits after each row, in fp32.

        Their shape is (rows, vocabulary). Everything that takes much memory happens in here.
        """
        if self._kept is not None:
            # It is made for beam search, and selects rows in every kind of cache.
            self._cache.reorder_cache(self._kept)
            self._kept = None
        arguments: dict[str, Any] = {self._cache_name: self._cache}
        if any(self._padding):
            arguments["attention_mask"] = self._mask
            if self._takes_positions:
                positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
                arguments["position_ids"] = positions[:, self._cached :]
        new = self._ids[:, self._cached :]
        out = self._model(new, **arguments, use_cache=True, logits_to_keep=1)
        self._cache, self._cached = out[self._cache_name], self._ids.shape[1]
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def advance(self, kept: Sequence[int], tokens: Sequence[int]) -> None:
        """Keep only some of the rows, given by their indices, and append a token to each."""
        if len(kept) < len(self._padding):
            self._kept = torch.tensor(kept, device=self._ids.device)
            self._ids, self._mask = self._ids[self._kept], self._mask[self._kept]
            self._padding = [self._padding[index] for index in kept]
        new = torch.tensor(tokens, device=self._ids.device)[:, None]
        self._ids = torch.cat([self._ids, new], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(new)], dim=1)


@torch.inference_mode()
def padding_problem(model: "PreTrainedModel | PeftModel") -> str | None:
    """Return why a model must not be given padded rows, or None if it computes them exactly.

    Every model is tried, because no documentation says what a model makes of padding on the left:
    it may ignore the mask, count positions from the padding, or carry the padding in a recurrent
    state. A short row is continued beside a longer one, then without it, and compared with the same
    row alone. An error on the way is the problem of the result.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    long, short, new = (
        torch.randint(vocabulary, (length,), generator=generator).tolist() for length in (40, 7, 2)
    )
    try:
        beside = _continued(model, [short, long], new)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each model family raises its own types
        return f"cannot compute padded prompts ({first_line(error)})"
    alone = _continued(model, [short], new)
    # A number added to all logits changes no probability, and may be larger than their differences.
    beside, alone = (logits - logits.mean(dim=-1, keepdim=True) for logits in (beside, alone))
    tolerance = _TOLERANCE.get(model.dtype, _TOLERANCE[torch.bfloat16])
    if not (beside - alone).abs().max() <= tolerance * alone.abs().max():  # NaN is no less either
        return "computes a padded prompt differently from the same prompt alone"
    return None


def _continued(
    model: "PreTrainedModel | PeftModel", rows: Sequence[Sequence[int]], tokens: Sequence[int]
) -> torch.Tensor:
    """Return the logits after the first row and after two more tokens of it, (3, vocabulary).

    The other rows get the first of these tokens too, and leave before the second.
    """
    batch = PaddedBatch(model, rows)
    logits = [batch.logits()[0]]
    for kept, token in zip((range(len(rows)), [0]), tokens, strict=True):
        batch.advance(kept, [token] * len(kept))
        logits.append(batch.logits()[0])
    return torch.stack(logits)


def _arguments(model: "PreTrainedModel | PeftModel") -> Collection[str]:
    """Return the names of the arguments of a model's forward pass."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(inner.forward).parameters


def _cache_name(arguments: Collection[str]) -> str:
    """Return the name of a model's cache, as an argument and in its output.

    Recent releases of transformers call every cache `cache`. In older ones it is `past_key_values`,
    and `cache_params` in state-space models.
    """
    names = ("cache", "past_key_values", "cache_params")
    return next((name for name in names if name in arguments), names[0])
