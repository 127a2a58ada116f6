"""A layer with rounded weights is nearly the layer with those weights, however computed."""

import pytest
import torch
from torch.nn.functional import gelu

from chattune.generate.matrix import affine
from chattune.models.gpt_neo_weights import to_int8


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("rows", [1, 3, 8, 100, 130])
@pytest.mark.parametrize(("width", "height"), [(96, 160), (768, 2305), (33, 3), (20, 1)])
@pytest.mark.parametrize("kind", [torch.int8, torch.bfloat16, torch.float32])
def test_a_layer_is_that_of_the_rounded_weights(
    kind: torch.dtype, width: int, height: int, rows: int, bf16: bool
) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(height, width, generator=generator)
    scale = torch.ones(height)
    if kind == torch.int8:
        weight, scale = to_int8(weight)
    weight, scale = weight.to(kind), scale.float()
    x = torch.randn(rows, width, generator=generator)
    x[:, 5] *= 50  # what a language model's hidden states look like
    x[0, 7] = -300
    bias = torch.randn(height, generator=generator)
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T + bias
    layer = affine(weight, scale, bias, bf16=bf16)
    ours = layer(x)
    assert ours.shape == (rows, height)
    # Many rows of rounded weights are multiplied in bf16, a few beside int8 are rounded to int16.
    if kind == torch.float32 or (kind == torch.bfloat16 and rows < 100):
        bound = 1e-6
    else:
        bound = 1e-3 if rows < 100 or (kind == torch.int8 and not bf16) else 5e-3
    assert float((ours - exact).norm() / exact.norm()) < bound

    stream = torch.randn(rows, height, generator=generator)
    added = layer(x, gelu=True, onto=stream.clone())
    assert torch.allclose(added, stream + gelu(ours, approximate="tanh"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.int8, torch.float32])
def test_a_row_comes_out_the_same_beside_few_and_beside_many(kind: torch.dtype) -> None:
    weight, scale, x = torch.randn(70, 1000), torch.ones(70), torch.randn(30, 1000)
    if kind == torch.int8:
        weight, scale = to_int8(weight)
    layer = affine(weight, scale, torch.zeros(70), bf16=False)
    for rows in (1, 2, 8, 11):
        assert torch.equal(layer(x[:rows]), layer(x)[:rows])


@pytest.mark.parametrize("width", [768, 16_384])
@pytest.mark.parametrize("rows", [1, 4])
def test_sums_of_int8_have_room(width: int, rows: int) -> None:
    """All weights and all numbers as large as can be, and alike."""
    weight, scale = torch.full((8, width), 127, dtype=torch.int8), torch.ones(8)
    weight[1] = -127
    x = torch.full((rows, width), 3.0)
    ours = affine(weight, scale, torch.zeros(8))(x)
    assert ours[:, 0].tolist() == pytest.approx([3.0 * 127 * width] * rows, rel=1e-3)
    assert torch.equal(ours[:, 1], -ours[:, 0])
