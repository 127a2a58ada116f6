"""GPT-Neo's fast path: our attention and GELU on transformers' own modules and weights.

transformers 5 gives GPT-Neo an eager attention, and a flash path that drops the local layers'
window (beyond 256 tokens it computes another model). What is changed here is how the same modules
compute, so peft, save_pretrained and generate work on as before.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from chattune.models.gelu import TanhGelu
from chattune.models.packed_attention import packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class _Layout:
    """Lengths of the conversations in the pack that is under way; None outside of a pack."""

    lengths: list[int] | None = None


def speed_up(model: "PreTrainedModel") -> None:
    """Make a GPT-Neo model (in place) compute packs fast.

    A pack is `input_ids` (1, tokens) with `position_ids` that start anew at each conversation,
    without mask or cache; any other call is computed as transformers does. Dropout of the
    attention's probabilities is left out.
    """
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

    layout = _Layout()
    model.base_model.register_forward_pre_hook(_layout_reader(layout), with_kwargs=True)
    for module in model.modules():
        if isinstance(module, GPTNeoSelfAttention):
            module.forward = _fast_attention(module, layout)
        elif getattr(module, "act", None).__class__.__name__ == "NewGELUActivation":
            module.act = TanhGelu()  # the same function, in one pass


def _layout_reader(layout: _Layout) -> Any:
    def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        positions, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
        cached = kwargs.get("use_cache") is not False or kwargs.get("past_key_values") is not None
        if positions is None or mask is not None or cached or positions.shape[0] != 1:
            layout.lengths = None
            return None
        # A conversation goes on while positions grow by one, wherever they began.
        breaks = (positions[0].diff() != 1).nonzero()[:, 0] + 1
        starts = [0, *breaks.tolist()]
        ends = [*starts[1:], positions.shape[1]]
        layout.lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        # transformers returns a 4D mask as it is, instead of building one of tokens x tokens.
        return args, {**kwargs, "attention_mask": positions.new_empty(1, 1, 0, 0)}

    return read


def _fast_attention(module: Any, layout: _Layout) -> Any:
    eager = module.forward
    window = module.config.window_size if module.attention_type == "local" else None

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if layout.lengths is None:
            return eager(hidden_states, *args, **kwargs)
        states = hidden_states[0]
        mixed = packed_attention(
            module.q_proj(states),
            module.k_proj(states),
            module.v_proj(states),
            layout.lengths,
            module.num_heads,
            window,
        )
        return module.resid_dropout(module.out_proj(mixed))[None], None

    return forward
