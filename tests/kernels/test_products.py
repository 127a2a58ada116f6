"""Linear layers for decoding compute the product with their rounded weights, on every path."""

import pytest
import torch
from torch.nn.functional import gelu

from chattune.kernels.products import Linear
from chattune.weights import to_int8

# The dtype of the weights, and whether the machine multiplies many rows fast in bf16.
KINDS = [
    pytest.param(torch.int8, True, id="int8"),
    pytest.param(torch.int8, False, id="int8 without bf16"),
    pytest.param(torch.bfloat16, True, id="bf16"),
    pytest.param(torch.float32, False, id="fp32"),
]


@pytest.mark.parametrize("rows", [0, 1, 3, 16, 17, 33, 70])
@pytest.mark.parametrize(("width", "height"), [(96, 160), (768, 2305), (33, 3), (20, 1)])
@pytest.mark.parametrize(("kind", "bf16"), KINDS)
def test_a_layer_is_the_product_with_its_rounded_weights(
    kind: torch.dtype, bf16: bool, width: int, height: int, rows: int
) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(height, width, generator=generator)
    scale = torch.ones(height)
    if kind == torch.int8:
        weight, scale = to_int8(weight)
    weight, scale = weight.to(kind), scale.float()
    x = torch.randn(rows, width, generator=generator)
    x[:, 5] *= 50  # a language model's hidden states have such large columns
    x[:1, 7] = -300
    bias = torch.randn(height, generator=generator)
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T + bias
    layer = Linear(weight, scale, bias, bf16=bf16)
    ours = layer(x)
    assert ours.shape == (rows, height)
    # Activations are rounded: to bf16 where there are many rows, else to int16 beside int8 weights.
    bound = 1e-3 if kind == torch.int8 else 1e-6
    bound = 5e-3 if bf16 and rows > 16 else bound
    assert float((ours - exact).norm()) <= bound * float(exact.norm())

    stream = torch.randn(rows, height, generator=generator)
    added = layer(x, gelu=True, add_to=stream.clone())
    assert torch.allclose(added, stream + gelu(ours, approximate="tanh"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.int8, torch.bfloat16, torch.float32])
def test_a_row_is_the_same_bits_beside_few_and_beside_many(kind: torch.dtype) -> None:
    """The same bits also come out wherever the arrays lie in memory."""
    torch.manual_seed(0)
    weight, scale, x = torch.randn(170, 1000), torch.ones(170), torch.randn(16, 1000)
    if kind == torch.int8:
        weight, scale = to_int8(weight)
    layer = Linear(weight.to(kind), scale, torch.randn(170), bf16=False)
    stream, obstacles = torch.randn(16, 170), []
    expected = layer(x), layer(x, gelu=True, add_to=stream.clone())
    for rows in 40 * (1, 2, 8, 11, 16):
        obstacles.append(torch.empty(1 + 37 * len(obstacles)))
        assert torch.equal(layer(x[:rows]), expected[0][:rows])
        added = layer(x[:rows], gelu=True, add_to=stream[:rows].clone())
        assert torch.equal(added, expected[1][:rows])


@pytest.mark.parametrize("width", [768, 16_384])
@pytest.mark.parametrize("rows", [1, 4])
def test_sums_of_int8_do_not_overflow(width: int, rows: int) -> None:
    """All weights have the largest absolute value, and all activations are equal."""
    weight, scale = torch.full((8, width), 127, dtype=torch.int8), torch.ones(8)
    weight[1] = -127
    x = torch.full((rows, width), 3.0)
    ours = Linear(weight, scale, torch.zeros(8), bf16=True)(x)
    assert ours[:, 0].tolist() == pytest.approx([3.0 * 127 * width] * rows, rel=1e-3)
    assert torch.equal(ours[:, 1], -ours[:, 0])
