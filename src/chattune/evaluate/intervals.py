"""Figures with 95 % intervals: rates, means, and paired differences between two models.

Replies to one prompt resemble each other, so everything here works on values grouped by prompt: a
list with one list of numbers for each prompt. Intervals then hold for other prompts of the same
kind, and not only for other replies to these.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Groups = Sequence[Sequence[float]]

_LEVEL = 0.95
_Z = 1.959964  # the standard normal distribution's 97.5 % quantile
_RESAMPLES = 2000
_FLIPS = 10_000


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval, and the number of samples that it is made of."""

    value: float
    low: float
    high: float
    n: int


def rate(groups: Groups) -> Figure:
    """Return the share of ones among zeros and ones, with Wilson's interval (1927).

    With several samples for each prompt, the interval is that of the effective number of samples,
    which is what the variance between prompts leaves of them (Korn and Graubard 1998). Where all
    samples are alike, their variance is unknown, and the number of prompts is taken.
    """
    flat = _flat(groups)
    n, share = len(flat), float(flat.mean())
    low, high = _wilson(share, _effective_size(groups, share, n))
    return Figure(share, low, high, n)


def mean(groups: Groups) -> Figure:
    """Return the mean over all samples, with the interval of a bootstrap over prompts."""
    return ratio([sum(group) for group in groups], [len(group) for group in groups])


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Figure:
    """Return the sum of the numerators over that of the denominators; each prompt has one of both.

    The interval is that of a percentile bootstrap over prompts (Efron 1979), with 2,000 resamples
    and a fixed seed. The figure's n is the sum of the denominators.
    """
    above, below = np.array(numerators, np.float64), np.array(denominators, np.float64)
    picked = _resamples(len(above))
    low, high = _percentiles(above[picked].sum(1) / below[picked].sum(1))
    return Figure(float(above.sum() / below.sum()), low, high, int(below.sum()))


def difference(ours: Groups, theirs: Groups, *, is_rate: bool) -> Figure:
    """Return how much higher the mean of `ours` is, for the same prompts in the same order.

    The interval is that of a bootstrap over prompts, each with both of its values. For a rate that
    differs on no prompt, the bootstrap would say that it differs on none at all; the interval is
    then Newcombe's for paired shares (1998, method 10).
    """
    apart = _per_prompt(ours) - _per_prompt(theirs)
    value = float(apart.mean())
    if is_rate and not apart.any():
        share = float(_per_prompt(ours).mean())
        low, high = _wilson(share, len(apart))
        return Figure(value, low - high, high - low, len(apart))
    low, high = _percentiles(apart[_resamples(len(apart))].mean(1))
    return Figure(value, low, high, len(apart))


def p_value(ours: Groups, theirs: Groups) -> float:
    """Return how likely a mean difference at least as large is if neither side is higher.

    It is a permutation test (Fisher 1935): the sign of each prompt's difference is drawn at random,
    10,000 times with a fixed seed.
    """
    apart = _per_prompt(ours) - _per_prompt(theirs)
    apart = apart[apart != 0]
    if not len(apart):
        return 1.0
    signs = np.random.default_rng(0).integers(0, 2, (_FLIPS, len(apart))) * 2 - 1
    as_large = np.abs(signs @ apart) >= abs(apart.sum()) - 1e-9
    return float((as_large.sum() + 1) / (_FLIPS + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method (1979), in the same order."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _wilson(share: float, n: float) -> tuple[float, float]:
    """Return Wilson's interval of a share of n, where n may be an effective number of samples."""
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    low, high = ((centre + sign * half) / (1 + _Z**2 / n) for sign in (-1, 1))
    return (0.0 if share == 0 else max(0.0, low)), (1.0 if share == 1 else min(1.0, high))


def _effective_size(groups: Groups, share: float, n: int) -> float:
    prompts = len(groups)
    if prompts == n or prompts < 2:
        return prompts
    if share in (0, 1):
        return prompts
    residuals = np.array([sum(group) - share * len(group) for group in groups])
    clustered = prompts / (prompts - 1) * float((residuals**2).sum()) / n**2
    independent = share * (1 - share) / n
    return min(n, max(1.0, n * independent / clustered)) if clustered else n


def _flat(groups: Groups) -> NDArray[np.float64]:
    return np.array([value for group in groups for value in group], np.float64)


def _per_prompt(groups: Groups) -> NDArray[np.float64]:
    return np.array([sum(group) / len(group) for group in groups], np.float64)


def _resamples(prompts: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, prompts, (_RESAMPLES, prompts))


def _percentiles(means: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
