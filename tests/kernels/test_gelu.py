"""GELU and its gradient, beside PyTorch's in double precision."""

import pytest
import torch
from torch import nn

from chattune.kernels.gelu import TanhGelu


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 3e-6), (torch.bfloat16, 5e-3)], ids=str
)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (70, 130)], ids=str)
def test_gelu_and_its_gradient_equal_pytorchs(
    shape: tuple[int, ...], dtype: torch.dtype, bound: float
) -> None:
    x = torch.linspace(-12, 12, torch.Size(shape).numel()).view(shape).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    wanted = nn.functional.gelu(exact, approximate="tanh")
    ours = TanhGelu()(x)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), wanted, rtol=bound, atol=bound)
    (wanted * wanted.detach().sin()).sum().backward()
    (ours * ours.detach().sin()).sum().backward()
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=4 * bound, atol=4 * bound)
