"""Fast training for GPT-Neo: our attention and GELU on transformers' own modules and weights.

transformers 5 gives GPT-Neo an eager attention, and a FlashAttention path that ignores the local
layers' window, so that its results are wrong beyond 256 tokens. Only how the modules compute is
changed here, so peft, save_pretrained and generate work as before.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from chattune.kernels.gelu import TanhGelu
from chattune.kernels.packed_attention import packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Pack:
    """The lengths of the conversations in the pack that the model was called with last.

    They are None after a call without a pack. They stay for the backward pass, which may compute
    the attention again.
    """

    lengths: list[int] | None = None


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
    pack = _Pack()
    model.base_model.register_forward_pre_hook(_pack_reader(pack), with_kwargs=True)
    for module in model.modules():
        if isinstance(module, GPTNeoSelfAttention):
            module.forward = _fast_attention(module, pack)
        elif isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = TanhGelu()  # the same function, in one pass
    return True


def _pack_reader(pack: _Pack) -> Any:
    """Return a hook that takes `pack_lengths` from the inner model's arguments and keeps it.

    A hook is needed because transformers does not hand unknown arguments on to attention modules.
    """

    def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pack.lengths = kwargs.pop("pack_lengths", None)
        if pack.lengths is not None:
            # With a 4D mask, of whatever size, transformers builds none of tokens x tokens.
            kwargs["attention_mask"] = kwargs["position_ids"].new_empty(1, 1, 0, 0)
        return args, kwargs

    return read


def _fast_attention(module: Any, pack: _Pack) -> Any:
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
