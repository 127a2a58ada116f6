"""int8 weights for the reference engine: transformers' modules with our linear layer in them."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from chattune.generate.matrix import Matrix, matrix
from chattune.models.gpt_neo_weights import to_int8

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale a row; any leading shape, in bf16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_int8(linear.weight.detach().float())
        self._product: Matrix = matrix({"w": weight, "w.scale": scale}, "w")
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        out = self._product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def quantized(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """The model with its adapter merged, its linear layers in int8 and the rest in bf16."""
    whole: PreTrainedModel = (
        model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    )
    whole = whole.to(torch.bfloat16)
    for parent in list(whole.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
    return whole
