"""Dropout by a seed: the share of dropped elements, and positions that are as good as random."""

import pytest
import torch

from chattune.kernels.dropout import draw_dropout, drop

FIVE = torch.tensor(5)
SEEDS = (0, 1, 2**31 - 1, 2**31, 2**62 - 1)


def kept(seed: int, p: float = 0.5, count: int = 200_000) -> torch.Tensor:
    return drop(torch.ones(count), p, torch.tensor(seed)).bool()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_a_share_p_is_zeroed_and_the_rest_is_unchanged(dtype: torch.dtype, p: float) -> None:
    x = torch.arange(1.0, 100_001).to(dtype).view(400, 250)
    out = drop(x, p, torch.tensor(7))
    zero = out == 0
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert torch.equal(out[~zero], x[~zero])
    assert float(zero.float().mean()) == pytest.approx(p, abs=0.006)  # 4 standard deviations


def test_the_same_seed_drops_the_same_positions() -> None:
    x = torch.randn(1000, 30)
    first = drop(x, 0.3, FIVE)
    assert torch.equal(first, drop(x, 0.3, FIVE))
    assert torch.equal(
        first == 0, drop(x.t().contiguous().bfloat16(), 0.3, FIVE).view(1000, 30) == 0
    )


def test_other_dtypes_and_devices_draw_a_mask_from_the_same_generator() -> None:
    """fp16 on a CPU takes the path of a GPU."""
    x = torch.randn(300, 40).half()
    torch.manual_seed(3)
    draw = draw_dropout(x, 0.3)
    torch.manual_seed(3)
    assert draw.dtype == torch.bool
    assert torch.equal(draw, draw_dropout(x, 0.3))
    out = drop(x, 0.3, draw)
    assert torch.equal(out != 0, draw & (x != 0))
    assert torch.equal(out[draw], x[draw])
    transposed = drop(x.t().contiguous().t(), 0.3, draw)  # another layout in memory
    assert torch.equal(transposed, out)
    assert float(draw.float().mean()) == pytest.approx(0.7, abs=0.02)
    assert drop(x, 0.0, draw_dropout(x, 0.0)) is x


def test_the_number_of_threads_changes_nothing() -> None:
    threads, x = torch.get_num_threads(), torch.randn(300, 100)
    before = drop(x, 0.3, FIVE)
    try:
        torch.set_num_threads(1)
        assert torch.equal(before, drop(x, 0.3, FIVE))
    finally:
        torch.set_num_threads(threads)


def test_masks_of_different_seeds_agree_only_by_chance() -> None:
    """The same holds for a mask beside another's that is shifted or swapped pair by pair."""
    masks = [kept(seed) for seed in SEEDS]
    for i, one in enumerate(masks):
        for other in masks[i + 1 :]:
            for moved in (other, other.roll(1), other.view(-1, 2).flip(1).flatten()):
                assert float((one == moved).float().mean()) == pytest.approx(0.5, abs=0.006)


@pytest.mark.parametrize("seed", SEEDS)
def test_positions_are_independent_of_their_neighbours(seed: int) -> None:
    mask = kept(seed).float() - 0.5
    for distance in (1, 2, 3, 16, 64, 768, 4096):
        together = (mask[distance:] * mask[:-distance]).mean() * 4
        assert abs(float(together)) < 0.012
    assert float(kept(seed, 0.05).view(-1, 100).float().mean(1).std()) == pytest.approx(
        (0.05 * 0.95 / 100) ** 0.5, rel=0.1
    )
