"""The weights of Llama's family as its decoder takes them: adapter merged, joined, rounded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from chattune.base import DEFAULT_POSITIONS, Base, model_config
from chattune.weights import Named, Precision, TensorReader, Tensors, read_weights, without_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Kinds of rotary positions whose frequencies depend on the config alone, not on a text's length.
_ROTARY_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class LlamaWeights:
    """Shape and tensors of one model.

    `heads` query heads share `key_heads` heads of keys and values, of `head_size` numbers each.
    `frequencies` (head size / 2) are the angles in radians by which rotary positions turn a pair of
    numbers from one token to the next, `rotary_scale` is a factor of the turned numbers, and
    `is_rotary` tells which layers have such positions.

    For layer i, `tensors` holds the matrices `i.qkv` (query, key and value, joined), `i.out`,
    `i.gate_up` (two matrices, joined) and `i.down`, each with a `.bias` where the model has one,
    and the norms `i.ln_1` and `i.ln_2`, and `i.q_norm` and `i.k_norm` (head size) where it has
    those. For the model it holds `embedding`, `ln_f`, `head.mean` (the mean row of the output
    layer) and `head` (the output layer minus that row). A matrix in int8 has a `.scale` for each
    row.
    """

    heads: int
    key_heads: int
    head_size: int
    positions: int
    frequencies: torch.Tensor
    rotary_scale: float
    is_rotary: tuple[bool, ...]
    epsilon: float
    tensors: Tensors


def config_problem(config: "PretrainedConfig") -> str | None:
    """Return what the decoder does not have and a model with this config needs, or None."""
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, and Llama's is silu"
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or []
    slides = "sliding_attention" in layers if layers else window is not None
    if slides and window < config.max_position_embeddings:
        return f"its tokens see only the last {window} tokens (sliding window)"
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in _ROTARY_KINDS:
        return f"its rotary positions are of the kind {rope.get('rope_type')}"
    if rope.get("partial_rotary_factor", 1) != 1:
        return "only a part of each head has rotary positions"
    if quantization := getattr(config, "quantization_config", None):
        method = dict(quantization).get("quant_method", "another method")
        return f"its weights are quantized by {method}"
    return None


def read_llama(base: Base, run: Path | None, precision: Precision) -> LlamaWeights:
    """Read a base's weights, with a run's adapter merged; see `weights.read_weights`.

    Raises BaseError for weights that are damaged or lack a tensor.
    """
    config = model_config(base)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    rotary = getattr(config, "no_rope_layers", None) or [1] * layers  # 1: the layer has positions
    frequencies, rotary_scale = _rotary(config)

    def convert(reader: TensorReader) -> Iterator[Named]:
        return _decoder_tensors(reader, layers, tied=config.tie_word_embeddings)

    return LlamaWeights(
        heads=heads,
        key_heads=config.num_key_value_heads or heads,
        head_size=_head_size(config),
        positions=base.positions or DEFAULT_POSITIONS,
        frequencies=frequencies,
        rotary_scale=rotary_scale,
        is_rotary=tuple(bool(kind) for kind in rotary),
        epsilon=config.rms_norm_eps,
        tensors=read_weights(base, run, precision, "model.", convert, ["embedding"]),
    )


def _head_size(config: "PretrainedConfig") -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _rotary(config: "PretrainedConfig") -> tuple[torch.Tensor, float]:
    """Return the frequencies of rotary positions and the factor of what they turn.

    The plain ones are those of Su et al. 2021 (RoFormer); transformers computes the others.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        size = _head_size(config)
        exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
    return frequencies.float(), float(scale)


def _decoder_tensors(reader: TensorReader, layers: int, *, tied: bool) -> Iterator[Named]:
    """Yield the tensors of LlamaWeights in fp32 from those of transformers' LlamaModel."""
    joined = {
        "qkv": [f"self_attn.{x}_proj" for x in "qkv"],
        "out": ["self_attn.o_proj"],
        "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "down": ["mlp.down_proj"],
    }
    norms = {
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    }
    embedding = reader.read("embed_tokens.weight")
    yield "embedding", embedding
    for i in range(layers):
        for name, sources in joined.items():
            places = [f"layers.{i}.{source}" for source in sources]
            yield f"{i}.{name}", torch.cat([reader.read(f"{place}.weight") for place in places])
            if f"{places[0]}.bias" in reader.files:
                biases = [reader.read(f"{place}.bias") for place in places]
                yield f"{i}.{name}.bias", torch.cat(biases)
        for name, source in norms.items():
            place = f"layers.{i}.{source}.weight"
            if name.startswith("ln") or place in reader.files:
                yield f"{i}.{name}", reader.read(place)
    yield "ln_f", reader.read("norm.weight")
    yield from without_mean(embedding if tied else reader.read("lm_head.weight"))
