"""Two models that were compared with the same full one, over the same tokens: which of them is nearer to it?

Both predict the same tokens, and what is hard for one is hard for the other. So the difference of their divergences,
token by token, has a far narrower interval than either of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coterie.errors import UsageError
from coterie.evaluate.confidence import Estimate, block_starts, mean_estimate
from coterie.evaluate.journal import read_windows

_SAME = ("against", "texts", "media", "context", "stride", "component")
"""Of two evaluations, what has to be equal for their tokens to be the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """One model beside another over the same tokens.

    Attributes:
        name: Of the text, or of several together.
        tokens: Tokens that both predicted.
        kld: Mean KL(full ‖ model) of the one, in nats per token, with its interval.
        other_kld: That of the other.
        difference: Mean of the one's less the other's, token by token: below 0 where the one is nearer to the full
            model.
        ratio: The one's mean divided by the other's; None where the other has none. Its interval is that of a ratio
            estimator, linearised (Cochran, "Sampling Techniques", 1977, chapter 6).
    """

    name: str
    tokens: int
    kld: Estimate
    other_kld: Estimate
    difference: Estimate
    ratio: Estimate | None

    @property
    def nearer(self) -> bool | None:
        """Whether the one is nearer to the full model; None if the interval leaves it open, or there is none."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return None
        return high < 0


class PairedScores:
    """The divergences of two models, token by token, from what their evaluations have kept.

    Args:
        one: The journal of the one's evaluation.
        other: That of the other's.

    Raises:
        UsageError: If they are no such journals, or of other tokens or other full models.
        InputError: If one cannot be read.
    """

    def __init__(self, one: str | Path, other: str | Path) -> None:
        (header, scores), (other_header, other_scores) = read_windows(one), read_windows(other)
        differing = [name for name in _SAME if header.get(name) != other_header.get(name)]
        if differing or scores.keys() != other_scores.keys():
            raise UsageError(
                f"{one} and {other} are of different evaluations: {', '.join(differing) or 'windows'} differ.",
                advice="Evaluate both with the same texts and settings.",
            )
        self._stride = int(header["stride"])
        self._texts = len(header["texts"])
        self._one = _klds({key: found.kld for key, found in scores.items()}, one)
        self._other = _klds({key: found.kld for key, found in other_scores.items()}, other)

    def compare(self, name: str, texts: Sequence[int]) -> Paired:
        """The two over some of the texts.

        Args:
            name: What to call them.
            texts: Their numbers, in the order in which they were evaluated; the sounds and pictures of a domain follow
                the texts, and count as one.
        """
        starts, ones, others = [], [], []
        for text in texts:
            windows = self._one[text]
            # Sounds and pictures are independent of each other.
            context = self._stride if text < self._texts else 1
            starts.append(block_starts([len(window) for window in windows], context))
            ones.append(np.concatenate(windows))
            others.append(np.concatenate(self._other[text]))
        kld, other_kld = (mean_estimate(values, starts).within(0.0) for values in (ones, others))
        other = other_kld.value
        ratio = None
        if other > 0:
            value = kld.value / other
            rest = mean_estimate([a - value * b for a, b in zip(ones, others, strict=True)], starts)
            ratio = Estimate(
                value=value,
                low=None if rest.low is None else max(0.0, value + rest.low / other),
                high=None if rest.high is None else value + rest.high / other,
            )
        return Paired(
            name=name,
            tokens=sum(map(len, ones)),
            kld=kld,
            other_kld=other_kld,
            difference=mean_estimate([a - b for a, b in zip(ones, others, strict=True)], starts),
            ratio=ratio,
        )


def _klds(
    windows: Mapping[tuple[int, int], NDArray[np.float64] | None], path: str | Path
) -> dict[int, list[NDArray[np.float64]]]:
    """The divergences of each text, window by window."""
    found: dict[int, list[NDArray[np.float64]]] = {}
    for (text, _), kld in sorted(windows.items()):
        if kld is None:
            raise UsageError(f"{path} is of a model that was compared with no other.", path=path)
        found.setdefault(text, []).append(kld)
    return found
