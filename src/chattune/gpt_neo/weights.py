"""GPT-Neo's weights as its decoder takes them: adapter merged, projections fused, rounded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from chattune.base import Base
from chattune.errors import BaseError
from chattune.weights import (
    MergedTensors,
    Precision,
    Tensors,
    merged_tensors,
    rounded,
    save_int8,
    saved_int8,
)

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
    i, `tensors` holds the matrices `i.qkv` (3 hidden, hidden), `i.out`, `i.fc` and `i.proj`, their
    biases, and the norms `i.ln_1` and `i.ln_2`; for the model `wte` and `wpe` (the embeddings of
    tokens and positions), `ln_f`, `head` (the output layer less its mean row) and `head.mean` (that
    row). A matrix in int8 has a `.scale` for each row.
    """

    layers: int
    heads: int
    window: int
    positions: int
    is_local: tuple[bool, ...]
    epsilon: float
    precision: Precision
    tensors: Tensors


def read_gpt_neo(base: Base, run: Path | None, precision: Precision) -> GptNeoWeights:
    """Read a base's weights, with a run's adapter merged into them in fp32 before any rounding.

    The int8 weights of a run are kept in its folder, and read from there the next time. Raises
    BaseError for weights that are damaged or lack a tensor.
    """
    config = base.config
    if absent := [key for key in _CONFIG_KEYS if key not in config]:
        raise BaseError(f"base {base.name}: its config.json lacks {', '.join(absent)}")
    kinds = [kind for pattern, times in config["attention_types"] for kind in pattern * times]
    keep = run is not None and precision == "int8"
    tensors = saved_int8(base, run) if run is not None and keep else None
    if tensors is None:
        with merged_tensors(base, run, "transformer.") as read:
            tensors = dict(rounded(_fused(read, len(kinds)), precision, _EMBEDDINGS))
        if run is not None and keep:
            save_int8(base, run, tensors)
    return GptNeoWeights(
        layers=len(kinds),
        heads=config["num_heads"],
        window=config["window_size"],
        positions=config["max_position_embeddings"],
        is_local=tuple(kind == "local" for kind in kinds),
        epsilon=config["layer_norm_epsilon"],
        precision=precision,
        tensors=tensors,
    )


def _fused(read: MergedTensors, layers: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of GptNeoWeights in fp32 from those of transformers' GPTNeoModel."""
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
    tied = read.base.config.get("tie_word_embeddings", True)
    head = read("wte.weight" if tied else "lm_head.weight")
    # The mean row adds the same number to all logits and so changes no probability, but it is most
    # of a logit's absolute value, by which rounding errors grow. It is computed apart, in fp32.
    mean = head.mean(dim=0)
    yield "head", head - mean
    yield "head.mean", mean
