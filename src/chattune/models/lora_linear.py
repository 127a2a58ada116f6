"""A LoRA layer's forward and backward pass in the base's dtype, with the adapter kept in fp32.

peft converts x to fp32 for the small products with A and B. In the base's dtype they are cheaper
where that is bf16, and the input is saved once for base and adapter. Only how peft's own layer
computes is changed: its parameters, names and saving stay.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from chattune.kernels.dropout import draw_dropout, drop


def speed_up_lora(model: nn.Module) -> None:
    """Make every plain LoRA layer on a linear module compute fast, in place."""
    from peft.tuners.lora import Linear

    for module in model.modules():
        if type(module) is Linear and isinstance(module.base_layer, nn.Linear):
            module.forward = _fast_forward(module)


def _fast_forward(module: Any) -> Any:
    """Return a forward method for a LoRA layer; peft's own serves what _LoraLinear cannot."""
    peft_forward = module.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plain = len(module.active_adapters) == 1 and not (
            args
            or kwargs
            or module.disable_adapters
            or module.merged
            or module.lora_variant
            or any(module.lora_bias.values())
        )
        if not plain:
            out: torch.Tensor = peft_forward(x, *args, **kwargs)
            return out
        name = module.active_adapters[0]
        dropout = module.lora_dropout[name]
        result: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            x,
            module.base_layer.weight,
            module.base_layer.bias,
            module.lora_A[name].weight,
            module.lora_B[name].weight,
            module.scaling[name],
            dropout.p if module.training and isinstance(dropout, nn.Dropout) else 0.0,
        )
        return result

    return forward


class _LoraLinear(torch.autograd.Function):
    """The sum x W^T + bias + scaling * dropout(x) A^T B^T, with no gradient for W and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        p: float,
    ) -> torch.Tensor:
        rows = x.flatten(0, -2)
        draw = draw_dropout(rows, p)
        a = (a / (1 - p)).to(x.dtype)  # dropout's scaling, applied to the small matrix
        down = drop(rows, p, draw) @ a.t()
        result = linear(rows, weight, bias)
        result.addmm_(down, b.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(rows, weight, a, b, down, draw)
        ctx.scaling, ctx.p, ctx.shape = scaling, p, x.shape
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, a, b, down, draw = ctx.saved_tensors
        grad, p = grad.flatten(0, -2), ctx.p
        d_down = (grad @ b.to(grad.dtype)).mul_(ctx.scaling)
        d_b = (grad.t() @ down).to(b.dtype).mul_(ctx.scaling)
        d_a = (d_down.t() @ drop(rows, p, draw)).to(b.dtype).div_(1 - p)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = grad @ weight
            if p:
                d_x += drop(d_down @ a, p, draw)
            else:
                d_x.addmm_(d_down, a)
            d_x = d_x.view(ctx.shape)
        return d_x, None, None, d_a, d_b, None, None
