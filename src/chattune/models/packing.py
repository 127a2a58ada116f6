"""Fast training passes: faster modules, and packs, which are conversations laid end to end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from chattune.errors import first_line
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
    """The way in which a model is given a pack.

    `takes_lengths` says whether its wing has given it the argument `pack_lengths`. `problem` says
    why it does not compute each conversation of a pack as if it were alone, or is None if it does;
    with a problem it may only be given single conversations.
    """

    takes_lengths: bool
    problem: str | None = None

    def arguments(self, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
        """Return the arguments of a forward pass that keep the conversations of a pack apart.

        `lengths` are their numbers of tokens: one for a model with a problem, which needs no
        arguments.
        """
        if self.problem:
            assert len(lengths) == 1
            return {}
        positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
        by_length = {"pack_lengths": list(lengths)} if self.takes_lengths else {}
        return {"position_ids": positions, **by_length}


def speed_up_training(model: "PreTrainedModel | PeftModel", *, longest: int) -> Packing:
    """Make a model's forward and backward pass fast, in place; return how it takes packs.

    `longest` is the number of tokens of the longest conversation that it will be given.
    """
    causal = causal_model(model)
    wing = find_wing(causal.config.model_type)
    takes_lengths = wing is not None and wing.speed_up_training(causal)
    speed_up_lora(model)
    return probe_packing(causal, longest=longest, takes_lengths=takes_lengths)


def causal_model(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """Return the transformers model inside peft's, or the model itself."""
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner


@torch.no_grad()
def probe_packing(model: "PreTrainedModel", *, longest: int, takes_lengths: bool) -> Packing:
    """Find out whether a model takes packs: compute three conversations in a pack and each alone.

    Every model is tried, because no documentation says what a model makes of position ids that
    start anew, which is transformers' convention for packs: it may ignore them, or carry state from
    one conversation to the next. An error that the pack causes is the problem of the result.
    """
    with evaluating(model):
        problem = _pack_problem(model, longest, Packing(takes_lengths))
    return Packing(takes_lengths, problem)


@contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Put a model into evaluation mode, without dropout, while the block runs."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _pack_problem(model: "PreTrainedModel", longest: int, packing: Packing) -> str | None:
    lengths = [longest, 7, 40]  # two short ones, for which a pack would most likely be used
    middle = slice(longest, longest + 7)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, sum(lengths)), generator=generator).to(model.device)
    ids[1, middle] = ids[0, middle]  # the same conversation among other neighbours
    arguments = packing.arguments(lengths, model.device)
    try:
        packed, other = (_hidden_states(model, row[None], arguments) for row in ids)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:  # no such argument, or no such kernel
        return f"it cannot compute a pack ({first_line(error)})"
    parts = torch.split(ids[:1], lengths, dim=1)
    alone = torch.cat([_hidden_states(model, part, {}) for part in parts], dim=1)
    largest = alone.abs().max()
    leaks = (packed - other)[:, middle].abs().max() > _LEAK_TOLERANCE * largest
    tolerance = _TOLERANCE.get(packed.dtype, _TOLERANCE[torch.bfloat16])
    if leaks or (packed - alone).abs().max() > tolerance * largest:
        return "it mixes the conversations of a pack"
    return None


def _hidden_states(
    model: "PreTrainedModel", ids: torch.Tensor, arguments: dict[str, Any]
) -> torch.Tensor:
    states: torch.Tensor = model.base_model(ids, use_cache=False, **arguments).last_hidden_state
    return states
