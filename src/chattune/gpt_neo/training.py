"""Fast training for GPT-Neo: our attention and GELU on transformers' own modules and weights.

transformers 5 gives GPT-Neo an eager attention, and a FlashAttention path that ignores the local
layers' window, so that its results are wrong beyond 256 tokens. Only how the modules compute is
changed here, so peft, save_pretrained and generate work as before.
"""

from typing import TYPE_CHECKING, Any

import torch

from chattune.kernels.gelu import TanhGelu
from chattune.kernels.packed_attention import packed_attention
from chattune.kernels.packs import Pack, keep_pack_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def speed_up_training(model: "PreTrainedModel") -> bool:
    """Make a GPT-Neo model compute packs fast, in place; return whether it could be done.

    The inner model (`model.base_model`) then takes an argument `pack_lengths`: the numbers of
    tokens of the conversations that `input_ids` (1, tokens) holds end to end, with `position_ids`
    that count from 0 in each, and without a mask or a cache. Every other call is computed by
    transformers. A model that trains with dropout on attention probabilities, which our attention
    does not have, is left as it is.
    """
    from transformers.activations import NewGELUActivation
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

    if model.config.attention_dropout:
        return False
    pack = keep_pack_lengths(model.base_model)
    for module in model.modules():
        if isinstance(module, GPTNeoSelfAttention):
            module.forward = _fast_attention(module, pack)
        elif isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = TanhGelu()  # the same function, in one pass
    return True


def _fast_attention(module: Any, pack: Pack) -> Any:
    """Return a forward method for an attention module that computes packs by packed_attention."""
    eager = module.forward
    window = module.config.window_size if module.attention_type == "local" else None

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if pack.lengths is None:
            return eager(hidden_states, *args, **kwargs)
        states = hidden_states[0]
        mixed = packed_attention(
            module.q_proj(states),
            module.k_proj(states),
            module.v_proj(states),
            pack.lengths,
            module.num_heads,
            window,
        )
        return module.resid_dropout(module.out_proj(mixed))[None], None

    return forward
