"""From scores of tokens to the figures of a text, or of several together.

The figures are those of llama.cpp's perplexity tool (``tools/perplexity/README.md``) where both have
them. What differs:

- It scores the second half of each window only; here every token but a text's first is scored once, so perplexities are
  higher with disjoint windows, and nearer to its ones with a stride of half the context.
- It stores the full model's log-probabilities in 16 bits and leaves out what that model finds less probable than e^-16,
  which puts a floor of about 1e-6 to 1e-3 under its divergences; here both models' logits are compared as they are, so
  a model compared with itself has a divergence of exactly 0.
- It takes tokens for independent; here blocks of them are (:mod:`coterie.evaluate.confidence`): wider intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coterie.evaluate.confidence import Estimate, mean_estimate

if TYPE_CHECKING:
    from coterie.evaluate.scores import TokenScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a model's predictions differ from the full model's, over the same tokens.

    Attributes:
        full_loss: The full model's mean −log p of the tokens that came, in nats per token.
        full_perplexity: Its exponential.
        full_accuracy: Share of tokens that came that the full model finds most probable.
        ratio: Perplexity ÷ the full model's. Its interval is that of the mean difference of the losses, token by token:
            far narrower than those of the two perplexities, since both read the same text.
        kld: Mean of KL(full ‖ model) over the vocabulary, in nats per token.
        kld_median: Median over tokens.
        kld_p90: 90 % of tokens have a smaller one.
        kld_p99: 99 % do.
        kld_p999: 99.9 % do.
        kld_max: The largest.
        same_top: Share of tokens for which both models find the same one most probable.
        mean_delta_p: Mean change of the probability of the token that came; negative where the model is worse.
        rms_delta_p: Root of the mean of its square: if the loss of quality were noise on the probability of the right
            token, the noise's standard deviation.
        identical: Tokens for which all logits are the same numbers.
    """

    full_loss: Estimate
    full_perplexity: Estimate
    full_accuracy: Estimate
    ratio: Estimate
    kld: Estimate
    kld_median: float
    kld_p90: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    same_top: Estimate
    mean_delta_p: Estimate
    rms_delta_p: Estimate
    identical: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The figures of one text, or of all together: a mean over tokens, so that long texts count for more.

    Attributes:
        name: The text's path, or ``all``.
        tokens: Tokens that were predicted.
        blocks: Blocks of tokens that confidence intervals rest on.
        loss: Mean −log p of the tokens that came, in nats per token.
        perplexity: Its exponential.
        accuracy: Share of tokens that came that the model finds most probable.
        comparison: With the full model; None without one.
    """

    name: str
    tokens: int
    blocks: int
    loss: Estimate
    perplexity: Estimate
    accuracy: Estimate
    comparison: Comparison | None


def measure(name: str, scores: Sequence[TokenScores], starts: Sequence[NDArray[np.intp]]) -> Quality:
    """The figures of one or several texts together.

    Args:
        name: For the result.
        scores: Of each text, of all its predictions in order.
        starts: Of each text, where its blocks begin: from :func:`~coterie.evaluate.confidence.block_starts`.
    """
    loss = mean_estimate([text.loss for text in scores], starts)
    return Quality(
        name=name,
        tokens=sum(len(text.loss) for text in scores),
        blocks=sum(len(begins) for begins in starts),
        loss=loss,
        perplexity=loss.through(_exp),
        accuracy=_share([text.correct for text in scores], starts),
        comparison=_compare(scores, starts),
    )


def _compare(scores: Sequence[TokenScores], starts: Sequence[NDArray[np.intp]]) -> Comparison | None:
    columns = [
        (text.loss, text.full_loss, text.full_correct, text.kld, text.same_top, text.identical)
        for text in scores
        if text.full_loss is not None
        and text.full_correct is not None
        and text.kld is not None
        and text.same_top is not None
        and text.identical is not None
    ]
    if len(columns) < len(scores):
        return None
    losses, full_losses, full_correct, klds, tops, identical = zip(*columns, strict=True)
    full_loss = mean_estimate(full_losses, starts)
    shifts = [_difference(loss, full) for loss, full in zip(losses, full_losses, strict=True)]
    changes = [np.exp(-loss) - np.exp(-full) for loss, full in zip(losses, full_losses, strict=True)]
    all_klds = np.concatenate(klds)
    median, p90, p99, p999 = _quantiles(all_klds, (0.5, 0.9, 0.99, 0.999))
    return Comparison(
        full_loss=full_loss,
        full_perplexity=full_loss.through(_exp),
        full_accuracy=_share(full_correct, starts),
        ratio=mean_estimate(shifts, starts).through(_exp),
        kld=mean_estimate(klds, starts).within(0.0),
        kld_median=median,
        kld_p90=p90,
        kld_p99=p99,
        kld_p999=p999,
        kld_max=float(all_klds.max()),
        same_top=_share(tops, starts),
        mean_delta_p=mean_estimate(changes, starts),
        rms_delta_p=mean_estimate([change**2 for change in changes], starts).within(0.0).through(math.sqrt),
        identical=int(sum(int(rows.sum()) for rows in identical)),
    )


def _share(columns: Sequence[NDArray[np.bool_]], starts: Sequence[NDArray[np.intp]]) -> Estimate:
    """The share of tokens for which something is so."""
    return mean_estimate([column.astype(np.float64) for column in columns], starts).within(0.0, 1.0)


def _quantiles(values: NDArray[np.float64], shares: Sequence[float]) -> list[float]:
    """With linear interpolation, but never between a number and infinity, which would be no number."""
    if np.isfinite(values).all():
        return [float(value) for value in np.quantile(values, shares)]
    return [float(value) for value in np.quantile(values, shares, method="higher")]


def _difference(loss: NDArray[np.float64], full: NDArray[np.float64]) -> NDArray[np.float64]:
    """Loss − full loss; 0 where both models rule out the token that came."""
    both = np.isinf(loss) & np.isinf(full)
    return np.where(both, 0.0, np.where(both, 0.0, loss) - np.where(both, 0.0, full))


def _exp(value: float) -> float:
    """The exponential, which is infinite where it is too large for a float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
