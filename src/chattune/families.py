"""The model families for which chattune has faster code than transformers, in one table.

The code of a family is a package, called its wing, with the functions of the protocol `Wing`. Every
other part of chattune asks `find_wing` and names no family itself; a model without a wing is
computed by transformers. To add a family, write its package and add it to `WINGS`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from chattune.base import Base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from chattune.weights import Precision


class Decoder(Protocol):
    """A model with a cache of keys and values that has `slots` rows, one for each reply under way.

    `positions` is the number of tokens that the model can see. All methods are called in PyTorch's
    inference mode, by one thread at a time; the logits that they return are in fp32.
    """

    slots: int
    positions: int

    def rewind(self, slot: int, length: int) -> int:
        """Prepare a slot to continue after the first `length` tokens that it holds.

        Returns `length`, or 0 where the slot has to start anew.
        """

    def prefill(self, slot: int, tokens: Sequence[int], start: int) -> "torch.Tensor":
        """Compute tokens from position `start` on; return the last one's logits (vocabulary)."""

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]
    ) -> "torch.Tensor":
        """Compute one more token in each slot; return their logits (slots, vocabulary).

        `lengths` are the numbers of tokens that the slots hold before.
        """


class Wing(Protocol):
    """The functions that a model family's package offers."""

    def speed_up_training(self, model: "PreTrainedModel") -> bool:
        """Change in place how a model computes packs; return whether it takes `pack_lengths`."""

    def decoding_problem(self, base: Base) -> str | None:
        """Return why the decoder cannot compute a base, or None if it can."""

    def load_decoder(
        self, base: Base, run: Path | None, precision: "Precision", *, slots: int, bf16: bool
    ) -> Decoder:
        """Load a base, with the adapter of the run in folder `run` merged if one is given.

        The decoder has `slots` rows of cache and weights in `precision`; `bf16` says whether this
        machine multiplies bf16 fast. Raises BaseError for damaged weights.
        """


def _gpt_neo() -> Wing:
    from chattune import gpt_neo

    return gpt_neo


def _llama() -> Wing:
    from chattune import llama

    return llama


# transformers' model_type -> a function that imports the wing when it is first needed.
WINGS: dict[str, Callable[[], Wing]] = {
    "gpt_neo": _gpt_neo,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), _llama),
}


def find_wing(model_type: str) -> Wing | None:
    """Return the wing for transformers' `model_type`, or None where there is none."""
    return WINGS[model_type]() if model_type in WINGS else None
