"""GPT-Neo's weights as its decoder takes them: adapter merged, projections joined, rounded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from chattune.base import Base
from chattune.errors import BaseError
from chattune.weights import Named, Precision, TensorReader, Tensors, read_weights, without_mean

_CONFIG_KEYS = (
    "attention_types",
    "num_heads",
    "window_size",
    "max_position_embeddings",
    "layer_norm_epsilon",
)
_EMBEDDINGS = ("wte", "wpe")


@dataclass(frozen=True)
class GptNeoWeights:
    """Shape and tensors of one model.

    `is_local` tells for each layer whether its attention is limited to `window` tokens. For layer
    i, `tensors` holds the matrices `i.qkv` (3 hidden, hidden), `i.out`, `i.fc` and `i.proj`, of
    which all but the first have a `.bias`, and the norms `i.ln_1` and `i.ln_2` with theirs. For the
    model it holds `wte` and `wpe` (the embeddings of tokens and positions), `ln_f` and its bias,
    `head.mean` (the mean row of the output layer) and `head` (the output layer minus that row). A
    matrix in int8 has a `.scale` for each row.
    """

    heads: int
    window: int
    positions: int
    is_local: tuple[bool, ...]
    epsilon: float
    tensors: Tensors


def read_gpt_neo(base: Base, run: Path | None, precision: Precision) -> GptNeoWeights:
    """Read a base's weights, with a run's adapter merged; see `weights.read_weights`.

    Raises BaseError for weights that are damaged or lack a tensor, and for a config that lacks a
    field.
    """
    config = base.config
    if absent := [key for key in _CONFIG_KEYS if key not in config]:
        raise BaseError(f"base {base.name}: its config.json lacks {', '.join(absent)}")
    kinds = [kind for pattern, times in config["attention_types"] for kind in pattern * times]
    tied = config.get("tie_word_embeddings", True)

    def convert(reader: TensorReader) -> Iterator[Named]:
        return _decoder_tensors(reader, len(kinds), tied=tied)

    return GptNeoWeights(
        heads=config["num_heads"],
        window=config["window_size"],
        positions=config["max_position_embeddings"],
        is_local=tuple(kind == "local" for kind in kinds),
        epsilon=config["layer_norm_epsilon"],
        tensors=read_weights(base, run, precision, "transformer.", convert, _EMBEDDINGS),
    )


def _decoder_tensors(reader: TensorReader, layers: int, *, tied: bool) -> Iterator[Named]:
    """Yield the tensors of GptNeoWeights in fp32 from those of transformers' GPTNeoModel."""
    read = reader.read
    yield "wte", read("wte.weight")
    yield "wpe", read("wpe.weight")
    for i in range(layers):
        attention, mlp = f"h.{i}.attn.attention", f"h.{i}.mlp"
        yield f"{i}.qkv", torch.cat([read(f"{attention}.{x}_proj.weight") for x in "qkv"])
        yield f"{i}.out", read(f"{attention}.out_proj.weight")
        yield f"{i}.out.bias", read(f"{attention}.out_proj.bias")
        for name, source in (("fc", "c_fc"), ("proj", "c_proj")):
            yield f"{i}.{name}", read(f"{mlp}.{source}.weight")
            yield f"{i}.{name}.bias", read(f"{mlp}.{source}.bias")
        for norm in ("ln_1", "ln_2"):
            yield f"{i}.{norm}", read(f"h.{i}.{norm}.weight")
            yield f"{i}.{norm}.bias", read(f"h.{i}.{norm}.bias")
    yield "ln_f", read("ln_f.weight")
    yield "ln_f.bias", read("ln_f.bias")
    yield from without_mean(read("wte.weight" if tied else "lm_head.weight"))
