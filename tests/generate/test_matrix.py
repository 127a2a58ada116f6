"""A product with rounded weights is the product with those weights, however it is computed."""

import pytest
import torch

from chattune.generate.matrix import matrix
from chattune.models.gpt_neo_weights import to_int8


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
@pytest.mark.parametrize(("width", "height"), [(96, 160), (2048, 2304)])
def test_int8_is_exact_but_for_the_weights(rows: int, width: int, height: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight, scale = to_int8(torch.randn(height, width, generator=generator))
    x = torch.randn(rows, width, generator=generator)
    x[:, 5] *= 50  # what a language model's hidden states look like
    x[0, 7] = -300
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T
    ours = matrix(weight, scale.float())(x)
    assert ours.shape == (rows, height)
    assert float((ours - exact).abs().max() / exact.abs().max()) < 1e-2
    assert float((ours - exact).norm() / exact.norm()) < 5e-3


def test_a_row_of_zeros_stays_one() -> None:
    weight, scale = to_int8(torch.randn(2048, 2304))
    product = matrix(weight, scale.float())
    assert float(product(torch.zeros(2, 2304)).abs().max()) < 1e-30
