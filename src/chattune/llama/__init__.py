"""The wing of Llama's family (Llama, SmolLM2 and 3, Mistral, Qwen2 and 3). See `families.Wing`."""

from pathlib import Path
from typing import TYPE_CHECKING

from chattune.base import Base, model_config
from chattune.llama.training import speed_up_training

if TYPE_CHECKING:
    from chattune.llama.decoding import LlamaDecoder
    from chattune.weights import Precision

__all__ = ["decoding_problem", "load_decoder", "speed_up_training"]


def decoding_problem(base: Base) -> str | None:
    """Return why the decoder cannot compute a base, or None if it can."""
    from chattune.llama.weights import config_problem

    return config_problem(model_config(base))


def load_decoder(
    base: Base, run: Path | None, precision: "Precision", *, slots: int, bf16: bool
) -> "LlamaDecoder":
    """Load a base, with the adapter of the run in folder `run` merged, ready to decode.

    `bf16` says whether this machine multiplies bf16 fast. Raises BaseError for damaged weights.
    """
    # Imported here because the decoder needs Numba, and training on a GPU does not.
    from chattune.llama.decoding import LlamaDecoder
    from chattune.llama.weights import read_llama

    return LlamaDecoder(read_llama(base, run, precision), slots, bf16=bf16)
