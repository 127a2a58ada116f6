"""Weights for decoding: a base's tensors with a run's adapter merged, rounded, and kept for later.

Tensors are read from safetensors one by one, without building transformers' modules, so that a
model of 1.3 billion parameters that was rounded to int8 once is ready within seconds.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from chattune.base import Base
from chattune.errors import BaseError
from chattune.run import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INT8, save_into

Precision = Literal["fp32", "bf16", "int8"]
Tensors = dict[str, torch.Tensor]
Named = tuple[str, torch.Tensor]
_FORMAT = (
    "2"  # version of the file of int8 weights; raise it when a family's tensors change meaning
)
_CACHE_LINE = 64  # bytes


@dataclass(frozen=True)
class TensorReader:
    """A reader of a base's tensors that adds the LoRA update of a run's adapter.

    `files` maps a tensor's name, without the architecture's `prefix`, to its open file and its name
    there. The adapter is one that chattune trained: on linear layers inside the prefix, with one
    rank and one `scaling` for all.
    """

    base: Base
    prefix: str
    files: dict[str, tuple[Any, str]]
    adapter: Tensors
    scaling: float

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in fp32. Raises BaseError if the base's files do not have it."""
        if name not in self.files:
            raise BaseError(f"base {self.base.name}: its weights lack {name}")
        file, stored_name = self.files[name]
        weight: torch.Tensor = file.get_tensor(stored_name).float()
        key = f"base_model.model.{self.prefix}{name.removesuffix('weight')}"
        if f"{key}lora_A.weight" in self.adapter:
            a, b = (self.adapter[f"{key}lora_{x}.weight"].float() for x in "AB")
            weight = weight + self.scaling * (b @ a)
        return weight


def read_weights(
    base: Base,
    run: Path | None,
    precision: Precision,
    prefix: str,
    convert: Callable[[TensorReader], Iterable[Named]],
    embeddings: Collection[str],
) -> Tensors:
    """Return a decoder's tensors: those that `convert` makes of a base's, rounded to `precision`.

    The adapter of the run in folder `run` is merged in fp32 before any rounding. `prefix` stands
    before the names of the architecture's inner model, such as `transformer.`. For `embeddings` see
    `rounded`. The int8 tensors of a run are kept in its folder, and read from there the next time.
    All tensors share one block of memory. Raises BaseError for weights that are damaged or lack a
    tensor.
    """
    keep = run is not None and precision == "int8"
    if run is not None and keep and (kept := _kept_int8(base, run)):
        return _side_by_side(kept)
    with _open_tensors(base, run, prefix) as reader:
        tensors = dict(rounded(convert(reader), precision, embeddings))
    if run is not None and keep:
        _keep_int8(base, run, tensors)
    return _side_by_side(tensors)


def _side_by_side(tensors: Tensors) -> Tensors:
    """Copy tensors into one block of memory, each at the start of a cache line.

    NumPy asks Linux for huge pages for a large block, which it does not get for matrices of less
    than 2 MB each. A token reads every weight once, and with pages of 4 KB the processor looks up
    33,000 of them for SmolLM2: decoding took a tenth longer.
    """
    starts, size = {}, 0
    for name, tensor in tensors.items():
        starts[name] = size
        size += -(-tensor.nbytes // _CACHE_LINE) * _CACHE_LINE
    block = torch.from_numpy(np.empty(size + _CACHE_LINE, np.uint8))
    shift = -block.data_ptr() % _CACHE_LINE
    moved: Tensors = {}
    for name, start in starts.items():
        tensor = tensors.pop(name)  # its memory is free once it is copied
        place = block[shift + start : shift + start + tensor.nbytes]
        moved[name] = place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return moved


@contextmanager
def _open_tensors(base: Base, run: Path | None, prefix: str) -> Iterator[TensorReader]:
    """Open a base's files, whose names may have the prefix or not, and a run's adapter."""
    with ExitStack() as stack:
        files: dict[str, tuple[Any, str]] = {}
        for path in sorted(base.folder.glob("*.safetensors")):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise BaseError(
                    f"base {base.name}: {path.name} cannot be read ({error})"
                ) from error
            names = file.keys()  # an open file is not iterable itself
            files |= {name.removeprefix(prefix): (file, name) for name in names}
        adapter, scaling = {}, 0.0
        if run is not None:
            config = json.loads((run / ADAPTER_CONFIG).read_text("utf-8"))
            adapter, scaling = load_file(run / ADAPTER_WEIGHTS), config["lora_alpha"] / config["r"]
        yield TensorReader(base, prefix, files, adapter, scaling)


def rounded(
    tensors: Iterable[Named], precision: Precision, embeddings: Collection[str]
) -> Iterator[Named]:
    """Yield named tensors with the matrices in `precision`; a matrix in int8 has a `.scale` too.

    `embeddings` are the names of matrices of which a token reads one row, so that int8 would save
    no time; they are rounded to bf16 instead. Vectors stay in fp32.
    """
    for name, tensor in tensors:
        if tensor.dim() < 2 or precision == "fp32":
            yield name, tensor.contiguous()
        elif precision == "bf16" or name in embeddings:
            yield name, tensor.bfloat16()
        else:
            int8, scale = to_int8(tensor)
            yield name, int8
            yield f"{name}.scale", scale


def without_mean(head: torch.Tensor) -> Iterator[Named]:
    """Yield an output layer (vocabulary, hidden) without its mean row, and that row.

    The mean row adds the same number to all of a token's logits. It changes no probability, but it
    is most of a logit's absolute value, by which the errors of rounding grow. So it is computed
    apart, in fp32, and added back, since a repetition penalty depends on a logit's own value.
    """
    mean = head.mean(dim=0)
    yield "head", head - mean
    yield "head.mean", mean


def to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round an fp32 matrix (out, in) to int8 with an fp32 scale per row: weight = int8 * scale.

    The rounding is symmetric: a row's largest absolute value becomes 127 or -127.
    """
    lowest, highest = weight.aminmax(dim=1)
    scale = (torch.maximum(-lowest, highest) / 127).clamp_min_(1e-12)  # no 0, by which we divide
    return (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def _kept_int8(base: Base, run: Path) -> Tensors | None:
    """Return the int8 tensors kept in a run's folder, mapped into memory until they are copied.

    Returns None if there are none, if they were made of other weights, or if they are damaged.
    """
    try:
        with safe_open(run / INT8, framework="pt") as file:
            if file.metadata() != _origin(base, run):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def _keep_int8(base: Base, run: Path, tensors: Tensors) -> None:
    """Keep int8 tensors in a run's folder; on a full disk or in a read-only folder do nothing."""
    with suppress(OSError, SafetensorError):
        save_into(run, lambda folder: save_file(tensors, folder / INT8, _origin(base, run)))


def _origin(base: Base, run: Path) -> dict[str, str]:
    """Return what int8 tensors are made of, as the metadata of their file."""
    with (run / ADAPTER_WEIGHTS).open("rb") as file:
        adapter = hashlib.file_digest(file, "sha256").hexdigest()
    return {"format": _FORMAT, "base": base.fingerprint(), "adapter": adapter}
