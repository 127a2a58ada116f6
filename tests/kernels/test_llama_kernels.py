"""RMS norm, gated SiLU and rotary positions, with their gradients, beside PyTorch's operations."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import silu

from chattune.kernels.rms_norm import rms_norm
from chattune.kernels.rotary import rotate
from chattune.kernels.swiglu import swiglu

BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
Operation = Callable[..., torch.Tensor]


def assert_equal_with_gradients(ours: Operation, exact: Operation, *inputs: torch.Tensor) -> None:
    """Compare a function of `inputs`, and its gradients, with an exact one in double precision."""
    bound = BOUND[inputs[0].dtype]
    leaves = [x.clone().requires_grad_() for x in inputs]
    doubles = [x.double().requires_grad_() for x in inputs]
    result, wanted = ours(*leaves), exact(*doubles)
    assert (result.shape, result.dtype) == (wanted.shape, inputs[0].dtype)
    torch.testing.assert_close(result.double(), wanted, rtol=bound, atol=bound)
    weights = torch.linspace(-1, 1, wanted.numel()).view_as(wanted).to(inputs[0].dtype)
    (result * weights).sum().backward()
    (wanted * weights.double()).sum().backward()
    for leaf, double in zip(leaves, doubles, strict=True):
        assert leaf.grad is not None
        assert double.grad is not None
        torch.testing.assert_close(leaf.grad.double(), double.grad, rtol=2 * bound, atol=2 * bound)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 3), (2, 70, 33), (5, 5000)], ids=str)
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.rand(shape[-1]).to(dtype)

    def exact(x: torch.Tensor) -> torch.Tensor:
        return weight.double() * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    assert_equal_with_gradients(lambda x: rms_norm(x, weight, 1e-5), exact, x)


@DTYPES
@pytest.mark.parametrize("shape", [(1,), (70, 130)], ids=str)
def test_gated_silu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gate = torch.linspace(-100, 20, torch.Size(shape).numel()).view(shape).to(dtype)
    up = torch.linspace(-1, 2, gate.numel()).view(shape).to(dtype)
    assert_equal_with_gradients(swiglu, lambda gate, up: silu(gate) * up, gate, up)


@DTYPES
@pytest.mark.parametrize("heads", [1, 3])
def test_rotary_positions(heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, angles = torch.randn(50, heads * 12).to(dtype), torch.randn(50, 6).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def exact(x: torch.Tensor) -> torch.Tensor:
        """Multiply complex numbers."""
        numbers = x.view(50, heads, 2, 6)
        turn = torch.complex(cos.double(), sin.double())[:, None, :6]
        turned = torch.complex(numbers[:, :, 0], numbers[:, :, 1]) * turn * 0.3
        return torch.cat((turned.real, turned.imag), dim=-1).view_as(x)

    assert_equal_with_gradients(lambda x: rotate(x, cos, sin, 0.3), exact, x)
