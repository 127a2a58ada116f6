"""A product with rounded weights is the product with those weights, however it is computed."""

import pytest
import torch

from chattune.generate.matrix import matrix
from chattune.models.gpt_neo_weights import to_int8


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
@pytest.mark.parametrize(("width", "height"), [(96, 160), (768, 2305)])
@pytest.mark.parametrize("kind", [torch.int8, torch.bfloat16, torch.float32])
def test_a_product_is_exact_but_for_the_weights(
    kind: torch.dtype, width: int, height: int, rows: int
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
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T
    ours = matrix(weight, scale)(x)
    assert ours.shape == (rows, height)
    # Many rows of rounded weights are multiplied in bf16.
    bound = 1e-6 if rows < 100 or kind == torch.float32 else 5e-3
    assert float((ours - exact).norm() / exact.norm()) < bound
