"""How far shares can be trusted when neighbouring tokens are alike.

Tokens of one document are not independent: a chapter about gardening sends its tokens to the same experts, a thousand
times over. So the unit here is not the token but the **block**: a stretch of consecutive segments of recording, at
most 32 of them, about equally many tokens each. A share is a ratio of sums over B blocks, p = Σ xᵇ / Σ nᵇ, and its
variance that of a ratio estimator (Cochran, "Sampling Techniques", 1977, section 6.3):

    v = B / (B − 1) · Σ (xᵇ − p·nᵇ)² / (Σ nᵇ)²

never less than if all tokens were independent. Tests use Student's t with B − 1 degrees of freedom (for a difference,
Welch's); intervals are those of Korn & Graubard ("Confidence intervals for proportions with small expected number of
positive counts estimated from survey data", Survey Methodology 24, 1998): Clopper and Pearson's exact binomial
interval for the *effective* number of tokens, which is n divided by the design effect and corrected for the degrees of
freedom. Nothing is drawn at random: the same counts give the same figures. With fewer than two blocks nothing can be
said, and what cannot be computed is NaN.

Documents longer than a block are beyond what this can see; an interval speaks of more text of the same kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.errors import ProfileError
from coterie.spec import install_advice

LEVEL = 0.95
"""Confidence level of all intervals."""
ALPHA = 0.05
"""False discovery rate that is tolerated, and level of each replication."""
MOST_BLOCKS = 32
"""Blocks of consecutive segments: enough degrees of freedom, and each as long as can be."""
LEAST_BLOCKS = 4
"""Blocks without which nothing is called a finding: two in each half."""
LEAST_SEGMENTS = 2 * LEAST_BLOCKS
"""Segments of a group without which reports leave it out: four in each half."""

Floats = npt.NDArray[np.float64]


def special_functions() -> Any:
    """SciPy's special functions, for distributions.

    Imported when something is asked, and not needed to record: where SciPy is installed, transformers loads it into
    every process that runs a model, which takes 30 MB of a memory budget. So it is an extra.

    Raises:
        ProfileError: If SciPy is not installed.
    """
    try:
        from scipy import special
    except ImportError as error:
        raise ProfileError(
            f"Questions about experts need SciPy, which is not there ({error}).",
            advice=install_advice("analysis"),
        ) from error
    return special


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens of B blocks and how many of them did something, for E things at once.

    Attributes:
        tokens: float64 [B].
        hits: float64 [B, E].
    """

    tokens: Floats
    hits: Floats

    @property
    def blocks(self) -> int:
        """B."""
        return len(self.tokens)

    @property
    def total(self) -> float:
        """Tokens in all."""
        return float(self.tokens.sum())

    def halves(self, *, alternating: bool = False) -> tuple[Sample, Sample]:
        """The first half of the blocks, and the second.

        Args:
            alternating: Every other block instead: where the blocks are of several domains, one after the other, and
                the two halves should be alike.
        """
        middle = self.blocks // 2
        cuts = (slice(0, None, 2), slice(1, None, 2)) if alternating else (slice(None, middle), slice(middle, None))
        first, second = (Sample(self.tokens[cut], self.hits[cut]) for cut in cuts)
        return first, second

    def of(self, things: Sequence[int]) -> Sample:
        """The same tokens, and some of the things alone."""
        return Sample(self.tokens, self.hits[:, list(things)])

    def shares(self) -> Floats:
        """[E] p, the share of tokens that did each thing; NaN without tokens."""
        if not self.total:
            return np.full(self.hits.shape[1], np.nan)
        shares: Floats = self.hits.sum(axis=0) / self.total
        return shares

    def variances(self) -> Floats:
        """[E] variance of each share between blocks; NaN for fewer than two."""
        if self.blocks < 2:
            return np.full(self.hits.shape[1], np.nan)
        residuals = self.hits - self.shares() * self.tokens[:, None]
        variances: Floats = self.blocks / (self.blocks - 1) * (residuals**2).sum(axis=0) / self.total**2
        return variances


def block_numbers(tokens: npt.NDArray[np.integer], most: int = MOST_BLOCKS) -> npt.NDArray[np.intp]:
    """Puts consecutive segments into at most so many blocks of about equally many tokens.

    Args:
        tokens: [S] tokens of each segment, in order.
        most: Blocks at most.

    Returns:
        [S] the block of each segment: 0, 0, 1, ... without gaps.
    """
    total = int(tokens.sum())
    if not total:
        return np.zeros(len(tokens), np.intp)
    middles = np.cumsum(tokens) - tokens / 2
    wanted = np.minimum((middles / total * min(most, len(tokens))).astype(np.intp), most - 1)
    return np.unique(wanted, return_inverse=True)[1].astype(np.intp)


def share_interval(sample: Sample) -> tuple[Floats, Floats]:
    """Lower and upper ends [E] of Korn and Graubard's interval for each share."""
    shares, variances = sample.shares(), sample.variances()
    if sample.blocks < 2:
        return np.full_like(shares, np.nan), np.full_like(shares, np.nan)
    total = sample.total
    independent = shares * (1 - shares) / total
    # Where no token, or every token, did it, blocks cannot differ: the design effect shows nothing, and is left at 1.
    design = np.divide(variances, independent, out=np.ones_like(shares), where=independent > 0)
    tail = (1 - LEVEL) / 2
    special = special_functions()
    quantiles = special.stdtrit(np.array([max(total - 1, 1), sample.blocks - 1]), 1 - tail)
    correction = (quantiles[0] / quantiles[1]) ** 2
    effective = np.minimum(total, total / np.maximum(design, 1)) * min(correction, 1.0)
    hits = shares * effective
    with np.errstate(invalid="ignore"):
        low = np.where(hits > 0, special.betaincinv(np.maximum(hits, 1e-12), effective - hits + 1, tail), 0.0)
        high = np.where(
            hits < effective, special.betaincinv(hits + 1, np.maximum(effective - hits, 1e-12), 1 - tail), 1.0
        )
    lower: Floats = np.minimum(low, shares)
    upper: Floats = np.maximum(high, shares)
    return lower, upper


def above(sample: Sample, level: float | Floats) -> Floats:
    """[E] one-sided p-values that a share is not above a fixed level, such as chance, or above its own of E levels."""
    variances = np.maximum(sample.variances(), level * (1 - level) / max(sample.total, 1))
    return _upper_tail(sample.shares() - level, variances, np.float64(sample.blocks - 1))


@dataclass(frozen=True, slots=True)
class Difference:
    """Shares of two samples, compared.

    Attributes:
        value: [E] the first minus the second.
        low: [E] lower end of the interval.
        high: [E] upper end.
        p_above: [E] one-sided p-value that the first is not above the second.
        p_below: [E] likewise, not below.
    """

    value: Floats
    low: Floats
    high: Floats
    p_above: Floats
    p_below: Floats

    @property
    def p_differs(self) -> Floats:
        """[E] two-sided p-values."""
        two_sided: Floats = np.minimum(2 * np.minimum(self.p_above, self.p_below), 1.0)
        return two_sided


def difference(first: Sample, second: Sample) -> Difference:
    """Compares the shares of two samples of different tokens (Welch's t on ratio estimators)."""
    value = first.shares() - second.shares()
    if min(first.blocks, second.blocks) < 2:
        nothing = np.full_like(value, np.nan)
        return Difference(value, nothing, nothing, nothing, nothing)
    pooled = (first.hits.sum(axis=0) + second.hits.sum(axis=0)) / (first.total + second.total)
    one, two = (np.maximum(s.variances(), pooled * (1 - pooled) / s.total) for s in (first, second))
    squares = one**2 / (first.blocks - 1) + two**2 / (second.blocks - 1)
    freedom = np.divide(
        (one + two) ** 2, squares, out=np.full_like(value, first.blocks + second.blocks - 2.0), where=squares > 0
    )
    reach = special_functions().stdtrit(freedom, 1 - (1 - LEVEL) / 2) * np.sqrt(one + two)
    return Difference(
        value,
        np.maximum(value - reach, -1),
        np.minimum(value + reach, 1),
        _upper_tail(value, one + two, freedom),
        _upper_tail(-value, one + two, freedom),
    )


def _upper_tail(excess: Floats, variances: Floats, freedom: npt.NDArray[np.float64] | np.float64) -> Floats:
    error = np.sqrt(variances)
    # Without any variance there is neither a hit nor room for one.
    t = np.divide(excess, error, out=np.zeros_like(excess), where=error > 0)
    tails = special_functions().stdtr(np.maximum(freedom, 1), -t)
    tail: Floats = np.where(np.isnan(excess) | np.isnan(error), np.nan, tails)
    return tail


def false_discovery_rates(p_values: Floats) -> Floats:
    """q-values of Benjamini & Hochberg ("Controlling the false discovery rate", JRSS B 57, 1995).

    Rejecting all with q ≤ α keeps the expected share of false ones among them at or below α, where tests are
    independent or depend on each other positively (Benjamini & Yekutieli 2001).

    Args:
        p_values: Of any shape; NaN where there was no test.

    Returns:
        q-values of the same shape, NaN likewise.
    """
    flat = p_values.ravel()
    tested = np.flatnonzero(~np.isnan(flat))
    order = tested[np.argsort(flat[tested], kind="stable")]
    raised = flat[order] * len(order) / np.arange(1, len(order) + 1)
    found = np.full(flat.shape, np.nan)
    found[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    return found.reshape(p_values.shape)
