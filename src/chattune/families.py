"""The model families that have a wing of their own, in one table by which the stages choose.

A wing is a package with the three functions of `Wing`. What no wing serves is computed by
transformers' own code. To add a family, write its package and add a line to `WINGS`.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from chattune.base import Base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from chattune.weights import Precision

WINGS = {"gpt_neo": "chattune.gpt_neo"}  # transformers' model_type -> package


class Decoder(Protocol):
    """A model with a cache of keys and values that has `slots` rows, one for each reply under way.

    `positions` is the number of tokens that the model can see. All methods are called in
    PyTorch's inference mode, by one thread at a time.
    """

    slots: int
    positions: int

    def rewind(self, slot: int, length: int) -> int:
        """Return how many of a slot's first `length` tokens can be continued from: all, or 0."""

    def prefill(self, slot: int, tokens: Sequence[int], start: int) -> "torch.Tensor":
        """Compute tokens from position `start` on; return the last one's logits (vocabulary)."""

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]
    ) -> "torch.Tensor":
        """Compute one more token in each slot; return its logits (slots, vocabulary), fp32.

        `lengths` are the numbers of tokens that the slots hold before.
        """


class Wing(Protocol):
    """What a model family's package offers to the stages."""

    def speed_up_training(self, model: "PreTrainedModel") -> bool:
        """Change in place how a model computes packs; return whether it takes `pack_lengths`."""

    def decoding_problem(self, config: dict[str, Any]) -> str | None:
        """Return why the decoder cannot compute a model with this config, or None if it can."""

    def load_decoder(
        self, base: Base, run: Path | None, precision: "Precision", *, slots: int, bf16: bool
    ) -> Decoder:
        """Load a base with a run's adapter merged."""


def find_wing(model_type: str) -> Wing | None:
    """Return the wing for transformers' `model_type`, or None where there is none."""
    if model_type not in WINGS:
        return None
    return cast("Wing", importlib.import_module(WINGS[model_type]))
