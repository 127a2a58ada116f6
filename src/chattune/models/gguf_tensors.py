"""The tensors of a GGUF file: their names, order of rows, types, and the error that rounding makes.

What is done to the rows, and which tensors stay in fp32, follows llama.cpp's own conversion script.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
from gguf.quants import quantize

from chattune.errors import BaseError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Array = np.ndarray[Any, np.dtype[Any]]

# transformers' model_type -> GGUF's architecture
ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "smollm3": MODEL_ARCH.SMOLLM3,
}
# llama.cpp rotates neighbouring numbers of a head for these, and transformers numbers that are half
# a head apart, so the rows of q and k are stored in another order.
_NEIGHBOURS = {MODEL_ARCH.LLAMA, MODEL_ARCH.SMOLLM3}
QUANTIZATIONS = {"q8_0": GGMLQuantizationType.Q8_0, "f16": GGMLQuantizationType.F16}


def tensors_of(model: "PreTrainedModel") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a model with GGUF's names, rows in GGUF's order, without rounding.

    An output layer that shares the embeddings' weights is left out, because llama.cpp then uses
    those. Raises BaseError for a tensor that the architecture does not have in GGUF.
    """
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    if (factors := rope_factors(config)) is not None:
        yield "rope_freqs.weight", factors
    for own_name, tensor in model.named_parameters():
        name = names.get_name(own_name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise BaseError(
                f"base {config.name_or_path}: GGUF has no name for its tensor {own_name}; export "
                "the model with --merged instead"
            )
        part = name.split(".")[-2]
        if architecture in _NEIGHBOURS and part in ("attn_q", "attn_k"):
            is_query = part == "attn_q"
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            tensor = _neighbouring_rows(tensor, heads)
        yield name, tensor


def rope_factors(config: "PretrainedConfig") -> torch.Tensor | None:
    """Return by what each rotary frequency is divided, (head width / 2), or None for nothing."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        return None
    width = head_width(config)
    plain = 1 / rope["rope_theta"] ** (torch.arange(0, width, 2) / width)
    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    factors: torch.Tensor = plain / scaled
    return factors


def head_width(config: "PretrainedConfig") -> int:
    """Return the number of columns of one attention head."""
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


def type_of(name: str, shape: torch.Size, quantization: str) -> GGMLQuantizationType:
    """Return the type in which a tensor is stored: vectors in fp32, matrices quantized.

    A matrix whose rows do not divide into the blocks of the quantization is in f16.
    """
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    block, _ = GGML_QUANT_SIZES[QUANTIZATIONS[quantization]]
    return GGMLQuantizationType.F16 if shape[-1] % block else QUANTIZATIONS[quantization]


def bytes_of(shape: torch.Size, kind: GGMLQuantizationType) -> int:
    """Return the number of bytes that a tensor of this shape takes in a type."""
    block, size = GGML_QUANT_SIZES[kind]
    return shape.numel() // block * size


def stored(tensor: torch.Tensor, kind: GGMLQuantizationType) -> Array:
    """Return a tensor as it is stored; a value beyond the range of the type becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(quantize(as_array(tensor), kind))


def as_array(tensor: torch.Tensor) -> Array:
    """Return a tensor as an fp32 array on the CPU."""
    return tensor.detach().float().cpu().contiguous().numpy()


def rounding(values: Array, kind: GGMLQuantizationType) -> Array:
    """Return the largest error that storing fp32 values in a type may make, for each value.

    f16 has 11 significant bits, and a step of 2**-24 near zero. q8_0 has an f16 scale for each
    block of 32 values, of which the largest becomes 127: to half a step of the scale comes the
    rounding of the scale itself, at most 127 times.
    """
    if kind == GGMLQuantizationType.F32:
        return np.zeros_like(values)
    if kind == GGMLQuantizationType.F16:
        return np.abs(values) * 2.0**-11 + 2.0**-25
    blocks = np.abs(values).reshape(-1, GGML_QUANT_SIZES[kind][0])
    largest = np.broadcast_to(blocks.max(axis=1, keepdims=True), blocks.shape)
    return (largest * (0.5 / 127 + 2.0**-11 + 2.0**-20) + 128 * 2.0**-25).reshape(values.shape)


def _neighbouring_rows(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Bring row i and row i + half of each head next to each other."""
    half = tensor.shape[0] // heads // 2
    halves = tensor.reshape(heads, 2, half, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)
