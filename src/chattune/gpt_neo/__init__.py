"""The GPT-Neo wing: fast packs for training, and a decoder for CPUs. See `families.Wing`."""

from pathlib import Path
from typing import TYPE_CHECKING

from chattune.base import Base
from chattune.gpt_neo.training import speed_up_training

if TYPE_CHECKING:
    from chattune.gpt_neo.decoding import GptNeoDecoder
    from chattune.weights import Precision

__all__ = ["decoding_problem", "load_decoder", "speed_up_training"]


def decoding_problem(base: Base) -> str | None:
    """Return why the decoder cannot compute a base, or None if it can."""
    activation = base.config.get("activation_function", "gelu_new")
    if activation != "gelu_new":
        return f"its activation is {activation}, and GPT-Neo's is gelu_new"
    return None


def load_decoder(
    base: Base, run: Path | None, precision: "Precision", *, slots: int, bf16: bool
) -> "GptNeoDecoder":
    """Load a base, with the adapter of the run in folder `run` merged, ready to decode.

    `bf16` says whether this machine multiplies bf16 fast. Raises BaseError for damaged weights.
    """
    # Imported here because the decoder needs Numba, and training on a GPU does not.
    from chattune.gpt_neo.decoding import GptNeoDecoder
    from chattune.gpt_neo.weights import read_gpt_neo

    return GptNeoDecoder(read_gpt_neo(base, run, precision), slots, bf16=bf16)
