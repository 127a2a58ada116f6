"""A product with rounded weights is the product with those weights, however it is computed."""

import os
import subprocess
import sys
from pathlib import Path

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


def test_a_machine_without_a_place_for_compiled_code_computes_all_the_same(tmp_path: Path) -> None:
    code = (
        "import torch; from chattune.generate.matrix import matrix;"
        "print(float(matrix(torch.ones(6, 4), torch.ones(6))(torch.ones(2, 4)).sum()))"
    )
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XDG_CACHE_HOME": str(nowhere)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "48.0"
