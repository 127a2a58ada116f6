"""Fast training passes: faster modules, and packs, which are conversations laid end to end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from chattune.base import DEFAULT_POSITIONS
from chattune.families import find_wing
from chattune.models.lora_linear import speed_up_lora

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Largest difference between hidden states in a pack and alone, relative to the largest hidden
# state. bf16 has 8 significant bits, and its rounding errors add up over the layers of a model.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
# Largest relative change, by rounding, when a conversation's neighbours in a pack change.
_LEAK_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Packing:
    """The way in which a model takes a pack.

    `exact` says whether it computes each conversation of a pack as if it were alone; if not, it may
    only be given single conversations. `takes_lengths` says whether its wing has given it the
    argument `pack_lengths`.
    """

    exact: bool
    takes_lengths: bool

    def arguments(self, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
        """Return the arguments of a forward pass that keep the conversations of a pack apart.

        `lengths` are their numbers of tokens: one for a model without exact packs, which needs no
        arguments.
        """
        if not self.exact:
            assert len(lengths) == 1
            return {}
        positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
        by_length = {"pack_lengths": list(lengths)} if self.takes_lengths else {}
        return {"position_ids": positions, **by_length}


def speed_up_training(model: "PreTrainedModel | PeftModel") -> Packing:
    """Make a model's forward and backward pass fast, in place; return how it takes packs."""
    causal = causal_model(model)
    wing = find_wing(causal.config.model_type)
    takes_lengths = wing is not None and wing.speed_up_training(causal)
    speed_up_lora(model)
    return probe_packing(causal, takes_lengths=takes_lengths)


def causal_model(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """Return the transformers model inside peft's, or the model itself."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


@torch.no_grad()
def probe_packing(model: "PreTrainedModel", *, takes_lengths: bool) -> Packing:
    """Find out whether a model takes packs: compute three conversations in a pack and each alone.

    Every model is tried, because no documentation says what a model makes of position ids that
    start anew, which is transformers' convention for packs: it may ignore them, or carry state from
    one conversation to the next.
    """
    packing = Packing(True, takes_lengths)
    with evaluating(model):
        exact = _equals_each_alone(model, packing)
    return packing if exact else Packing(False, takes_lengths)


@contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Put a model into evaluation mode, without dropout, while the block runs."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _equals_each_alone(model: "PreTrainedModel", packing: Packing) -> bool:
    config = model.config.get_text_config().to_dict()
    positions = config.get("max_position_embeddings") or DEFAULT_POSITIONS
    # The first is longer than GPT-Neo's window of 256, so that local attention is tried as well.
    lengths = [min(n, positions) for n in (300, 7, 40)]
    middle = slice(lengths[0], lengths[0] + lengths[1])
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, sum(lengths)), generator=generator).to(model.device)
    ids[1, middle] = ids[0, middle]  # the same conversation among other neighbours
    arguments = packing.arguments(lengths, model.device)
    try:
        packed, other = (_hidden_states(model, row[None], arguments) for row in ids)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError):  # no such argument, or no such kernel
        return False
    parts = torch.split(ids[:1], lengths, dim=1)
    alone = torch.cat([_hidden_states(model, part, {}) for part in parts], dim=1)
    largest = alone.abs().max()
    leaks = (packed - other)[:, middle].abs().max() > _LEAK_TOLERANCE * largest
    tolerance = _TOLERANCE.get(packed.dtype, _TOLERANCE[torch.bfloat16])
    return bool((packed - alone).abs().max() <= tolerance * largest and not leaks)


def _hidden_states(
    model: "PreTrainedModel", ids: torch.Tensor, arguments: dict[str, Any]
) -> torch.Tensor:
    states: torch.Tensor = model.base_model(ids, use_cache=False, **arguments).last_hidden_state
    return states
