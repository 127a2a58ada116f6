"""GPT-Neo's weights as a decoding engine wants them: adapter merged, fused, rounded.

Read from safetensors tensor by tensor, without building transformers' modules, so that a 1.3B
model in int8 that was saved once is there in a second.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from chattune.base import Base
from chattune.errors import BaseError
from chattune.run import ADAPTER, INT8, write_folder

Precision = Literal["fp32", "bf16", "int8"]
_FORMAT = "2"
_CONFIG = (
    "attention_types",
    "num_heads",
    "window_size",
    "max_position_embeddings",
    "layer_norm_epsilon",
)


@dataclass(frozen=True)
class GptNeoWeights:
    """Shape and tensors of one model.

    `tensors` holds, for layer i, `i.qkv` (3 hidden, hidden), `i.out`, `i.fc`, `i.proj`, their
    biases and norms in fp32; `wte` and `wpe` for the input; `head`, the output layer with its mean
    row taken out, and `head.mean`, that row. In int8 a matrix has a `.scale` for each row.
    """

    layers: int
    heads: int
    window: int
    positions: int
    local: tuple[bool, ...]
    epsilon: float
    precision: Precision
    tensors: dict[str, torch.Tensor]


def read_gpt_neo(base: Base, run: Path | None, precision: Precision) -> GptNeoWeights:
    """Weights of a base, with a run's adapter merged into them in fp32 before any rounding.

    In int8 (per row, symmetric) the result is saved beside the run, and read from there the next
    time. Raises BaseError for weights that are damaged or lack a tensor.
    """
    config = base.config
    if absent := [name for name in _CONFIG if name not in config]:
        raise BaseError(f"base {base.name}: its config.json lacks {', '.join(absent)}")
    kinds = [kind for group, times in config["attention_types"] for kind in group * times]
    tensors: dict[str, torch.Tensor] | None = None
    mark = {"format": _FORMAT, "base": base.fingerprint(), "adapter": _adapter_mark(run)}
    saved = run / INT8 if run is not None and precision == "int8" else None
    if saved is not None:
        tensors = _read_saved(saved, mark)
    if tensors is None:
        tensors = dict(_rounded(_fused(base, run, len(kinds)), precision))
        if saved is not None:
            _save(saved, tensors, mark)
    return GptNeoWeights(
        layers=len(kinds),
        heads=config["num_heads"],
        window=config["window_size"],
        positions=config["max_position_embeddings"],
        local=tuple(kind == "local" for kind in kinds),
        epsilon=config["layer_norm_epsilon"],
        precision=precision,
        tensors=tensors,
    )


def _fused(base: Base, run: Path | None, layers: int) -> Iterator[tuple[str, torch.Tensor]]:
    with ExitStack() as stack:
        read = _Reader(base, run, stack)
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
        tied = base.config.get("tie_word_embeddings", True)
        head = read("wte.weight" if tied else "lm_head.weight")
        # What all logits share changes no probability, but is most of their size, and rounding
        # goes by size: it is computed apart, in fp32.
        mean = head.mean(dim=0)
        yield "head", head - mean
        yield "head.mean", mean


class _Reader:
    """Tensors of a base by their names in GPTNeoModel, in fp32, the adapter's update added."""

    def __init__(self, base: Base, run: Path | None, stack: ExitStack) -> None:
        self._base = base
        self._files: dict[str, Any] = {}
        for path in sorted(base.folder.glob("*.safetensors")):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise BaseError(
                    f"base {base.name}: {path.name} cannot be read ({error})"
                ) from error
            self._files |= {name.removeprefix("transformer."): (file, name) for name in file.keys()}  # noqa: SIM118
        self._updates: dict[str, torch.Tensor] = {}
        self._scale = 0.0
        if run is not None:
            config = json.loads((run / ADAPTER[0]).read_text("utf-8"))
            self._scale = config["lora_alpha"] / config["r"]
            self._updates = load_file(run / ADAPTER[1])

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self._files:
            raise BaseError(f"base {self._base.name}: its weights lack {name}")
        file, stored = self._files[name]
        weight: torch.Tensor = file.get_tensor(stored).float()
        key = "base_model.model.transformer." + name.removesuffix("weight")
        if f"{key}lora_A.weight" in self._updates:
            a, b = (self._updates[f"{key}lora_{x}.weight"].float() for x in "AB")
            weight = weight + self._scale * (b @ a)
        return weight


def _rounded(
    tensors: Iterator[tuple[str, torch.Tensor]], precision: Precision
) -> Iterator[tuple[str, torch.Tensor]]:
    """Matrices of the layers and the head in the precision; the embeddings at most in bf16."""
    for name, tensor in tensors:
        if tensor.dim() < 2 or precision == "fp32":
            yield name, tensor.contiguous()
        elif precision == "bf16" or name in ("wte", "wpe"):
            yield name, tensor.bfloat16()
        else:
            rounded, scale = to_int8(tensor)
            yield name, rounded
            yield f"{name}.scale", scale


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix (out, in) as int8 with an fp32 scale for each row: weight = int8 * scale."""
    low, high = weight.aminmax(dim=1)
    scale = (torch.maximum(-low, high) / 127).clamp_min_(1e-12)
    return (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def _adapter_mark(run: Path | None) -> str:
    if run is None:
        return ""
    with (run / ADAPTER[1]).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_saved(path: Path, mark: dict[str, str]) -> dict[str, torch.Tensor] | None:
    """The saved tensors, mapped rather than read; None if they are another model's, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != mark:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _save(path: Path, tensors: dict[str, torch.Tensor], mark: dict[str, str]) -> None:
    with suppress(OSError, SafetensorError):  # a read-only run, a full disk: it is a shortcut
        write_folder(path.parent, lambda aside: save_file(tensors, aside / path.name, mark))
