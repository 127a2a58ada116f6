"""Conversations laid end to end in one row: does this model compute each as if alone?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from chattune.models.gpt_neo import speed_up
from chattune.models.lora_linear import speed_up_lora

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Of the largest logit. bf16 has 8 bits; over the layers of a model its roundings add up.
_ALIKE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
_LEAK = 1e-4


def positions_of(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    """Position ids (1, tokens) of a pack: each conversation counts from 0."""
    return torch.cat([torch.arange(length) for length in lengths])[None].to(device)


def prepare_packing(model: "PreTrainedModel | PeftModel") -> bool:
    """Make the model fast in place; whether a pack computes what each conversation alone does.

    Every model is tried, for what one makes of position ids that start anew (transformers'
    convention for packs) is not written anywhere: it may ignore them, or carry state across.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if causal.config.model_type == "gpt_neo" and not causal.config.attention_dropout:
        speed_up(causal)
    speed_up_lora(model)
    return _packs_exactly(causal)


@torch.no_grad()
def _packs_exactly(model: "PreTrainedModel") -> bool:
    was_training = model.training
    try:
        return _each_as_if_alone(model.eval())
    finally:
        model.train(was_training)


def _each_as_if_alone(model: "PreTrainedModel") -> bool:
    most = model.config.get_text_config().to_dict().get("max_position_embeddings") or 2048
    lengths = [min(n, most) for n in (300, 7, 40)]
    first, second = lengths[0], lengths[0] + lengths[1]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, sum(lengths)), generator=generator).to(model.device)
    ids[1, first:second] = ids[0, first:second]
    positions = positions_of(lengths, model.device)
    try:
        packed, other = (_hidden(model, row[None], positions) for row in ids)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError):  # no such argument, or no such kernel
        return False
    alone = torch.cat(
        [_hidden(model, part) for part in torch.split(ids[:1], lengths, dim=1)], dim=1
    )
    largest = alone.abs().max()
    # The middle one among other neighbours: the same numbers, whatever they round to.
    leaks = (packed - other)[:, first:second].abs().max() > _LEAK * largest
    alike = (packed - alone).abs().max() <= _ALIKE.get(packed.dtype, 5e-2) * largest
    return bool(alike and not leaks)


def _hidden(
    model: "PreTrainedModel", ids: torch.Tensor, positions: torch.Tensor | None = None
) -> torch.Tensor:
    given = {} if positions is None else {"position_ids": positions}
    states: torch.Tensor = model.base_model(ids, use_cache=False, **given).last_hidden_state
    return states
