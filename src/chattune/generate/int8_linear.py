"""int8 weights for the reference engine: transformers' modules with our linear layer in them."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from chattune.kernels.products import Linear
from chattune.weights import to_int8

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale per row, for inputs of any leading shape."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, bf16: bool) -> None:
        """Round `weight` (out, in); `bf16` says whether this machine multiplies bf16 fast."""
        super().__init__()
        rounded, scale = to_int8(weight.float())
        bias = torch.zeros(len(weight)) if bias is None else bias.detach().float()
        self._linear = Linear(rounded, scale, bias, bf16=bf16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output (..., out) for x (..., in), in the dtype of x."""
        out = self._linear(x.reshape(-1, x.shape[-1]))
        return out.view(*x.shape[:-1], out.shape[-1]).to(x.dtype)


def to_int8_linear(model: "PreTrainedModel | PeftModel", *, bf16: bool) -> "PreTrainedModel":
    """Merge the adapter of a model on a CPU, round its linear layers to int8, and return it.

    Everything else is in bf16 if the machine multiplies that fast, else in fp32. The int8 weights
    are no parameters of the modules, so converting the model leaves them alone.
    """
    merged: PreTrainedModel = (
        model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    )
    for parent in list(merged.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.Linear, Conv1D):  # GPT-2's Conv1D stores its weight transposed
                weight = child.weight.detach()
                weight = weight.T if type(child) is Conv1D else weight
                setattr(parent, name, Int8Linear(weight, child.bias, bf16=bf16))
    return merged.to(torch.bfloat16 if bf16 else torch.float32)
