"""Means over the tokens of texts, and how far to trust them.

Neighbouring tokens are alike: they share a topic, a context, a window. A standard error that takes them for
independent (as llama.cpp's perplexity tool does) is too small. Here tokens are put into blocks of consecutive ones,
each at least as long as a window and as the square root of the text, and blocks are taken for independent: batch
means, as in Flegal & Jones, "Batch means and spectral variance estimators in Markov chain Monte Carlo" (Annals of
Statistics 38, 2010), with the linearised variance of a ratio for blocks of different lengths (Cochran, "Sampling
Techniques", 1977, chapter 6) and Student's t. Several texts are strata: what is estimated is the mean over more text
of the same kinds in the same shares. Nothing is drawn at random, so the same scores always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Confidence level of all intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % confidence interval.

    Attributes:
        value: The figure.
        low: Lower end; None where there is too little text for an interval (fewer than two blocks).
        high: Upper end; None likewise.
    """

    value: float
    low: float | None
    high: float | None

    def through(self, function: Callable[[float], float]) -> Estimate:
        """The figure and its interval through a function that never decreases."""
        return Estimate(
            value=function(self.value),
            low=None if self.low is None else function(self.low),
            high=None if self.high is None else function(self.high),
        )

    def within(self, least: float, most: float = math.inf) -> Estimate:
        """The interval cut to values that are possible."""
        return self.through(lambda value: min(max(value, least), most))


def block_starts(windows: Sequence[int], context: int) -> NDArray[np.intp]:
    """Cuts a text's predictions into blocks of whole windows.

    Args:
        windows: Predictions of each window.
        context: Input tokens of a window: windows that overlap in it are not independent.

    Returns:
        Where each block begins, counted in predictions. A remainder shorter than a block belongs to the one before.
    """
    total = sum(windows)
    least = max(context, math.isqrt(max(total - 1, 0)) + 1)
    starts, begin, end = [0], 0, 0
    for tokens in windows:
        if end - begin >= least and total - end >= least:
            starts.append(end)
            begin = end
        end += tokens
    return np.array(starts, dtype=np.intp)


def mean_estimate(values: Sequence[NDArray[np.float64]], starts: Sequence[NDArray[np.intp]]) -> Estimate:
    """The mean over all tokens of all texts, with its confidence interval.

    Args:
        values: Of each text, a number per token.
        starts: Of each text, from :func:`block_starts`.
    """
    total = sum(len(text) for text in values)
    mean = float(sum(text.sum() for text in values)) / total
    strata = _strata(values, starts)
    freedom = sum(len(sums) - 1 for sums, _ in strata)
    if freedom < 1 or not math.isfinite(mean):
        return Estimate(value=mean, low=None, high=None)
    variance = sum(_variance(sums, counts) for sums, counts in strata) / total**2
    half = student_quantile(freedom) * math.sqrt(variance)
    return Estimate(value=mean, low=mean - half, high=mean + half)


def share_estimate(count: int, total: int) -> Estimate:
    """The share of independent cases, with the score interval of Wilson.

    "Probable inference, the law of succession, and statistical inference", Journal of the American Statistical
    Association 22, 1927. Unlike an interval by the variance, it has a width where all cases are alike.

    Args:
        count: Cases in which something is so.
        total: All cases, at least one.
    """
    share, z = count / total, NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = share + z**2 / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    low, high = ((middle + side * half) / (1 + z**2 / total) for side in (-1, 1))
    return Estimate(value=share, low=min(low, share), high=max(high, share)).within(0.0, 1.0)


_Stratum = tuple[NDArray[np.float64], NDArray[np.float64]]


def _strata(values: Sequence[NDArray[np.float64]], starts: Sequence[NDArray[np.intp]]) -> list[_Stratum]:
    """Sums and sizes of each text's blocks.

    A text of one block shows no variation by itself: all such texts make one stratum, and a single one joins another
    text's (Cochran's collapsed strata), which errs to the wide side.
    """
    strata: list[_Stratum] = []
    single: list[_Stratum] = []
    for text, begins in zip(values, starts, strict=True):
        counts = np.diff(np.append(begins, len(text))).astype(np.float64)
        (strata if len(begins) > 1 else single).append((np.add.reduceat(text, begins), counts))
    if len(single) == 1 and strata:
        single.append(strata.pop())
    if single:
        sums, sizes = zip(*single, strict=True)
        strata.append((np.concatenate(sums), np.concatenate(sizes)))
    return strata


def _variance(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """Variance of a stratum's total, were its number of tokens fixed."""
    blocks = len(sums)
    residuals = sums - counts * (sums.sum() / counts.sum())
    return float(blocks / (blocks - 1) * (residuals**2).sum())


def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t for which a Student-distributed variable lies between −t and t with probability ``level``.

    By bisection of the distribution's closed form for whole degrees of freedom (Abramowitz & Stegun 26.7.3–4).
    """
    low, high = 0.0, 1.0
    while _student_mass(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_mass(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _student_mass(t: float, freedom: int) -> float:
    """Probability of the interval from −t to t."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
