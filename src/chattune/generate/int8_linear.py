"""int8 weights for the reference engine: transformers' modules with our linear layer in them."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from chattune.generate.matrix import Affine, affine
from chattune.models.gpt_neo_weights import to_int8

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale a row; any leading shape."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, bf16: bool) -> None:
        """`weight` is (out, in); for `bf16` see affine()."""
        super().__init__()
        rounded, scale = to_int8(weight.float())
        bias = torch.zeros(len(weight)) if bias is None else bias.detach().float()
        self._affine: Affine = affine(rounded, scale, bias, bf16=bf16)
        self._height = len(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), of x's dtype."""
        out = self._affine(x.reshape(-1, x.shape[-1]))
        return out.view(*x.shape[:-1], self._height).to(x.dtype)


def quantized(model: "PreTrainedModel | PeftModel", *, bf16: bool) -> "PreTrainedModel":
    """The model with its adapter merged, its linear layers in int8 (on a CPU).

    The rest is in bf16 if the machine multiplies that fast, else in fp32.
    """
    whole: PreTrainedModel = (
        model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    )
    for parent in list(whole.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.Linear, Conv1D):  # GPT-2's lies the other way round
                weight = child.weight.detach()
                weight = weight.T if type(child) is Conv1D else weight
                setattr(parent, name, Int8Linear(weight, child.bias, bf16=bf16))
    return whole.to(torch.bfloat16 if bf16 else torch.float32)
