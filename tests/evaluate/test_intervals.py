"""Intervals: known answers, and simulations that show how often they cover the truth."""

import numpy as np
import pytest
from scipy.stats import binomtest

from chattune.evaluate.intervals import difference, holm, mean, p_value, rate, ratio


@pytest.mark.parametrize(("successes", "n"), [(0, 300), (3, 80), (40, 80), (300, 300)])
def test_a_rate_has_wilsons_interval(successes: int, n: int) -> None:
    figure = rate([[1.0]] * successes + [[0.0]] * (n - successes))
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert (figure.value, figure.n) == (successes / n, n)
    assert (figure.low, figure.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_replies_to_one_prompt_do_not_count_as_independent() -> None:
    alike = rate([[1.0, 1.0, 1.0, 1.0]] * 5 + [[0.0, 0.0, 0.0, 0.0]] * 15)
    once = rate([[1.0]] * 5 + [[0.0]] * 15)
    assert alike.value == once.value
    assert alike.high - alike.low == pytest.approx(once.high - once.low, rel=0.1)
    none = rate([[0.0] * 4] * 20)
    assert none.high == pytest.approx(rate([[0.0]] * 20).high)


def test_a_mean_counts_every_sample_once() -> None:
    figure = mean([[1.0, 2.0, 3.0], [10.0]])
    assert (figure.value, figure.n) == (4.0, 4)
    assert ratio([6.0, 10.0], [3.0, 1.0]) == figure


def test_a_difference_is_that_of_the_same_prompts() -> None:
    easy_and_hard = [[1.0], [0.0]] * 20
    figure = difference(easy_and_hard, easy_and_hard, is_rate=False)
    assert (figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0)
    better = [[value[0] + 0.5] for value in easy_and_hard]
    figure = difference(better, easy_and_hard, is_rate=False)
    assert (figure.low, figure.high) == (0.5, 0.5)


def test_two_rates_that_differ_nowhere_may_still_differ_elsewhere() -> None:
    figure = difference([[0.0]] * 300, [[0.0]] * 300, is_rate=True)
    assert figure.value == 0
    assert figure.low < -0.01 < 0.01 < figure.high


def test_a_permutation_test_tells_chance_from_a_difference() -> None:
    random = np.random.default_rng(0)
    noise = [[float(value)] for value in random.normal(size=40)]
    shifted = [[value[0] + 1] for value in noise]
    assert p_value(noise, noise) == 1
    assert p_value(shifted, noise) < 0.001
    assert p_value([[1.0], [0.0]], [[0.0], [1.0]]) == 1


def test_holms_correction_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def draws(kind: str, random: np.random.Generator) -> tuple[list[list[float]], float]:
    """Return samples grouped by prompt, and the true mean of their distribution."""
    if kind == "rare":
        return [[float(v)] for v in random.random(100) < 0.03], 0.03
    if kind == "half":
        return [[float(v)] for v in random.random(60) < 0.5], 0.5
    if kind == "clustered":  # three replies to each of 60 prompts, of which some are hard
        hard = random.beta(0.5, 1.5, 60)
        return [[float(v) for v in random.random(3) < p] for p in hard], 0.25
    if kind == "skewed":
        return [[float(v)] for v in random.exponential(size=80)], 1.0
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["rare", "half", "clustered", "skewed"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(kind: str) -> None:
    random = np.random.default_rng(1)
    figure_of = mean if kind == "skewed" else rate
    covered = 0
    for _ in range(300):
        groups, truth = draws(kind, random)
        figure = figure_of(groups)
        covered += figure.low <= truth <= figure.high
    # 95 % are expected; the standard error of 300 trials is 1.3 %.
    assert covered / 300 >= 0.91


def test_intervals_of_differences_cover_the_truth() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        hard = random.beta(1, 3, 80)
        ours, theirs = (
            [[float(v)] for v in random.random(80) < np.clip(hard + more, 0, 1)]
            for more in (0.1, 0.0)
        )
        figure = difference(ours, theirs, is_rate=True)
        covered += figure.low <= 0.1 <= figure.high
    assert covered / 300 >= 0.91
