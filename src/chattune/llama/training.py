"""Fast training for Llama's family: our kernels on transformers' own modules and weights.

Attention over a pack keeps each conversation to itself without a mask of tokens x tokens; RMS norm,
rotary positions and the gated SiLU are one pass over memory each. Only how the modules compute is
changed here, so peft, save_pretrained and generate work as before.
"""

from typing import TYPE_CHECKING, Any

import torch

from chattune.kernels.packs import Pack, keep_pack_lengths
from chattune.kernels.rms_norm import rms_norm
from chattune.kernels.rotary import rotate
from chattune.kernels.short_attention import attend_pack
from chattune.kernels.swiglu import swiglu

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Kinds of rotary positions whose angles depend on the longest conversation of a pack.
_ANGLES_BY_LENGTH = {"dynamic", "longrope"}


def speed_up_training(model: "PreTrainedModel") -> bool:
    """Make a model of Llama's family compute packs fast, in place; return whether it could be done.

    The inner model (`model.base_model`) then takes an argument `pack_lengths`: the numbers of
    tokens of the conversations that `input_ids` (1, tokens) holds end to end, with `position_ids`
    that count from 0 in each, and without a mask or a cache. Every other call is computed by
    transformers. A model that trains with dropout on attention probabilities, which our attention
    does not have, or whose rotary angles depend on the length of what it computes, is left as it
    is.
    """
    config, inner = model.config, model.base_model
    if config.attention_dropout or inner.rotary_emb.rope_type in _ANGLES_BY_LENGTH:
        return False
    pack = keep_pack_lengths(inner)
    for layer in inner.layers:
        layer.self_attn.forward = _fast_attention(layer.self_attn, pack)
        if config.hidden_act == "silu":
            layer.mlp.forward = _fast_mlp(layer.mlp, pack)
    for name, module in inner.named_modules():
        if name.endswith("norm"):
            module.forward = _fast_norm(module, pack)
    return True


def _fast_attention(module: Any, pack: Pack) -> Any:
    """Return a forward method for an attention module that computes packs by attend_pack."""
    plain, window, size = module.forward, _window(module), module.head_dim

    def forward(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        if pack.lengths is None:
            return plain(hidden_states, **kwargs)
        states = hidden_states[0]
        query, key, value = (p(states) for p in (module.q_proj, module.k_proj, module.v_proj))
        if hasattr(module, "q_norm"):  # Qwen3 norms each head
            query = module.q_norm(query.view(-1, size)).view_as(query)
            key = module.k_norm(key.view(-1, size)).view_as(key)
        if getattr(module, "use_rope", True):  # SmolLM3 has layers without positions
            cos, sin = (angles[0] for angles in kwargs["position_embeddings"])
            query, key = rotate(query, cos, sin, module.scaling), rotate(key, cos, sin)
        else:
            query = query * module.scaling
        heads = query.shape[1] // size
        mixed = attend_pack(query, key, value, pack.lengths, heads, window)
        return module.o_proj(mixed)[None], None

    return forward


def _window(module: Any) -> int | None:
    """Return the number of tokens that a token sees in this layer, or None for all before it."""
    config = module.config
    kinds = getattr(config, "layer_types", None)  # Llama and Mistral have layers of one kind
    if kinds is None or kinds[module.layer_idx] == "sliding_attention":
        return getattr(config, "sliding_window", None)
    return None


def _fast_norm(module: Any, pack: Pack) -> Any:
    """Return a forward method for a norm that computes packs by rms_norm, with a frozen weight."""
    plain = module.forward

    def forward(x: torch.Tensor) -> Any:
        weight = module.weight
        if pack.lengths is None or weight.requires_grad or weight.dtype != x.dtype:
            return plain(x)
        return rms_norm(x, weight, module.variance_epsilon)

    return forward


def _fast_mlp(module: Any, pack: Pack) -> Any:
    """Return a forward method for a feed-forward module that computes packs by swiglu."""
    plain = module.forward

    def forward(x: torch.Tensor) -> Any:
        if pack.lengths is None:
            return plain(x)
        return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))

    return forward
