"""Dropout by a seed: how many numbers fall, and that the places are as good as drawn."""

import pytest
import torch

from chattune.models.dropout import drawn, dropped

FIVE = torch.tensor(5)
SEEDS = (0, 1, 2**31 - 1, 2**31, 2**62 - 1)


def kept(seed: int, p: float = 0.5, count: int = 200_000) -> torch.Tensor:
    return dropped(torch.ones(count), p, torch.tensor(seed)).bool()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_so_many_are_zeroed_and_the_rest_is_left(dtype: torch.dtype, p: float) -> None:
    x = torch.arange(1.0, 100_001).to(dtype).view(400, 250)
    out = dropped(x, p, torch.tensor(7))
    zero = out == 0
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert torch.equal(out[~zero], x[~zero])
    assert float(zero.float().mean()) == pytest.approx(p, abs=0.006)  # 4 standard deviations


def test_the_same_seed_zeroes_the_same_places() -> None:
    x = torch.randn(1000, 30)
    first = dropped(x, 0.3, FIVE)
    assert torch.equal(first, dropped(x, 0.3, FIVE))
    assert torch.equal(
        first == 0, dropped(x.t().contiguous().bfloat16(), 0.3, FIVE).view(1000, 30) == 0
    )


def test_where_there_is_no_loop_for_it_a_mask_is_drawn_from_the_same_state() -> None:
    """fp16 on a CPU goes the way of a GPU."""
    x = torch.randn(300, 40).half()
    torch.manual_seed(3)
    which = drawn(x, 0.3)
    torch.manual_seed(3)
    assert which.dtype == torch.bool
    assert torch.equal(which, drawn(x, 0.3))
    out = dropped(x, 0.3, which)
    assert torch.equal(out != 0, which & (x != 0))
    assert torch.equal(out[which], x[which])
    lying = dropped(x.t().contiguous().t(), 0.3, which)  # however it lies in memory
    assert torch.equal(lying, out)
    assert float(which.float().mean()) == pytest.approx(0.7, abs=0.02)
    assert dropped(x, 0.0, drawn(x, 0.0)) is x


def test_the_number_of_threads_changes_nothing() -> None:
    threads, x = torch.get_num_threads(), torch.randn(300, 100)
    before = dropped(x, 0.3, FIVE)
    try:
        torch.set_num_threads(1)
        assert torch.equal(before, dropped(x, 0.3, FIVE))
    finally:
        torch.set_num_threads(threads)


def test_seeds_agree_on_no_more_places_than_chance() -> None:
    """Nor does a seed with another's places moved on, or taken in another order."""
    masks = [kept(seed) for seed in SEEDS]
    for i, one in enumerate(masks):
        for other in masks[i + 1 :]:
            for moved in (other, other.roll(1), other.view(-1, 2).flip(1).flatten()):
                assert float((one == moved).float().mean()) == pytest.approx(0.5, abs=0.006)


@pytest.mark.parametrize("seed", SEEDS)
def test_places_do_not_follow_from_their_neighbours(seed: int) -> None:
    mask = kept(seed).float() - 0.5
    for distance in (1, 2, 3, 16, 64, 768, 4096):
        together = (mask[distance:] * mask[:-distance]).mean() * 4
        assert abs(float(together)) < 0.012
    assert float(kept(seed, 0.05).view(-1, 100).float().mean(1).std()) == pytest.approx(
        (0.05 * 0.95 / 100) ** 0.5, rel=0.1
    )
