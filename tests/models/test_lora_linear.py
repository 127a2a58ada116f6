"""The LoRA layer's own backward pass is the derivative of its forward pass, dropout included."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from chattune.models.lora_linear import speed_up_lora


def adapted(p: float, dtype: torch.dtype) -> Any:
    """One adapted layer, in training."""
    torch.manual_seed(0)
    lora = LoraConfig(r=2, lora_dropout=p, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(
        nn.Sequential(nn.Linear(7, 5)).to(dtype), lora, autocast_adapter_dtype=False
    )
    return model.train()


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradients_are_those_of_what_was_computed(p: float) -> None:
    """fp64 goes the way of a GPU: a mask, drawn once."""
    model = adapted(p, torch.float64)
    speed_up_lora(model)
    weights = [w for w in model.parameters() if w.requires_grad]
    x = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)

    def layer(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        out: torch.Tensor = model(x)
        return out

    assert len(weights) == 2
    assert torch.autograd.gradcheck(layer, (x, *weights))


def test_without_dropout_it_is_pefts() -> None:
    model, x = adapted(0.0, torch.float32), torch.randn(2, 3, 7)
    theirs = model(x)
    speed_up_lora(model)
    assert torch.allclose(model(x), theirs, atol=1e-6)


def test_dropout_keeps_the_mean() -> None:
    model = adapted(0.4, torch.float32)
    x = torch.randn(1, 7)
    model.eval()
    exact = model(x)
    speed_up_lora(model)
    assert torch.allclose(model(x), exact, atol=1e-6)
    model.train()
    mean = model(x.expand(200_000, 7)).mean(0)
    assert torch.allclose(mean, exact[0], atol=0.02)
