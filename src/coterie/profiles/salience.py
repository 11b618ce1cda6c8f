"""SNARC salience of tokens: surprise, novelty, arousal, reward and conflict, each between 0 and 1. Numpy alone.

The five are those of the SNARC scheme for deciding what is worth attention: *how far off was the prediction, how unlike
the recent past is this, how much does it move, what is it worth, how undecided is the response*. What is measured for
each in a Mixture-of-Experts model is this project's choice:

- **Surprise** ``u / (u + ū)`` with u = −log p of the token given those before it (Shannon's surprisal) and ū its mean
  over earlier tokens: 0 for a certain token, ½ for one as surprising as usual, 1 in the limit.
- **Novelty** ``1 − max cos(s, r)`` over a reservoir of signatures r of earlier tokens. A token's signature s is the
  vector of its gate weights over all experts of all layers, each layer's scaled to the sum 1. The reservoir is biased
  towards recent tokens (Aggarwal 2006, *On biased reservoir sampling in the presence of stream evolution*): once it is
  full, each token takes the place of a random one, so that ages are distributed geometrically.
- **Arousal** mean over layers of ``a / (a + ā)`` with a = Σ over the layer's experts of gate weight × ‖output‖₂, a
  bound on how far they move the hidden state, and ā its mean over earlier tokens in that layer.
- **Reward** is given by the caller; ½ if none is.
- **Conflict** mean over layers of ``H(w) / ln K``, the entropy of the token's K gate weights scaled to the sum 1: 0
  where one expert has all the weight, 1 where all have the same.

Salience is the mean of the parts that are measured. Means over earlier tokens are plain for the first 256 and
exponential with the rate 1/256 from then on.

Letters: L banks of experts (layers), K experts per token.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from coterie.errors import UsageError

NEUTRAL = 0.5
"""What a part is that was as usual; and reward, where the caller gives none."""

HORIZON = 256
"""Earlier tokens that means and ranks look back upon."""

RESERVOIR = 64
"""Signatures that are kept."""

_LEAST_RANKED = 8
"""Saliences without which a rank says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Salience:
    """Of one token; each part from 0 to 1.

    Attributes:
        surprise: None if the logits that predict the token were not computed.
        novelty: 1 for the first token.
        arousal: None if what the experts add was not measured.
        reward: As given.
        conflict: 0 where there is one expert per token.
    """

    surprise: float | None
    novelty: float
    arousal: float | None
    reward: float
    conflict: float

    @property
    def overall(self) -> float:
        """Mean of the parts that are measured."""
        parts = (self.surprise, self.novelty, self.arousal, self.reward, self.conflict)
        known = [part for part in parts if part is not None]
        return sum(known) / len(known)


@dataclass(slots=True)
class RunningMean:
    """Means of one or several figures: plain over the first ``HORIZON`` values, exponential after that."""

    mean: npt.NDArray[np.float64] | None = None
    count: int = 0

    def compare(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Gives x / (x + mean) of each x ≥ 0 with the mean before it, ½ for the first; then takes them in."""
        mean = values if self.mean is None else self.mean
        both = values + mean
        against: npt.NDArray[np.float64] = np.divide(
            values, both, out=np.full(values.shape, NEUTRAL, np.float64), where=both > 0
        )
        self.count = min(self.count + 1, HORIZON)
        self.mean = mean + (values - mean) / self.count
        return against


@dataclass(slots=True)
class SalienceRank:
    """Which share of the last ``HORIZON`` saliences is lower: a scale on which every part is as frequent."""

    _recent: deque[float] = field(default_factory=deque)
    _ordered: list[float] = field(default_factory=list)

    def rank(self, salience: float) -> float | None:
        """Share of the earlier ones that are lower, equal ones counted half; None for the first few. Takes it in."""
        found = None
        if len(self._ordered) >= _LEAST_RANKED:
            lower = bisect.bisect_left(self._ordered, salience)
            found = (lower + bisect.bisect_right(self._ordered, salience)) / 2 / len(self._ordered)
        if len(self._recent) == HORIZON:
            del self._ordered[bisect.bisect_left(self._ordered, self._recent.popleft())]
        self._recent.append(salience)
        bisect.insort(self._ordered, salience)
        return found


class SalienceScale:
    """Scores token after token against those before.

    Args:
        experts: How many experts each bank has, in the order in which a token passes them; identity experts count.
        seed: Of the draws that decide which signature makes room for another.

    Attributes:
        reward: Of tokens from now on.
    """

    def __init__(self, experts: Sequence[int], *, seed: int = 0) -> None:
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(experts, np.int64))])
        self._counts = np.asarray(experts, np.int64)
        self._draw = np.random.default_rng(seed)
        self._signatures = np.zeros((RESERVOIR, int(self._starts[-1])), np.float32)
        self._kept = 0
        self._loss = RunningMean()
        self._sizes = RunningMean()
        self._reward = NEUTRAL

    @property
    def reward(self) -> float:
        """Reward of tokens from now on.

        Raises:
            UsageError: When it is set to something that is not between 0 and 1.
        """
        return self._reward

    @reward.setter
    def reward(self, value: float) -> None:
        self._reward = check_reward(value)

    def score(
        self,
        ids: Sequence[npt.NDArray[np.integer]],
        weights: Sequence[npt.NDArray[np.floating]],
        *,
        sizes: npt.NDArray[np.floating] | None = None,
        loss: float | None = None,
    ) -> Salience:
        """Salience of the next token.

        Args:
            ids: L arrays [K], what the routers chose; ids beyond a bank's experts are none. K may differ.
            weights: Their gate weights; negative ones count as 0.
            sizes: [L], what the experts added; None if it is not known.
            loss: −log p of the token, in nats; None if it is not known.
        """
        signature, conflict = self._routing(ids, weights)
        surprise = None if loss is None else float(self._loss.compare(np.array([loss], np.float64))[0])
        arousal = None if sizes is None else float(self._sizes.compare(np.asarray(sizes, np.float64)).mean())
        return Salience(
            surprise=surprise,
            novelty=self._novelty(signature),
            arousal=arousal,
            reward=self._reward,
            conflict=conflict,
        )

    def _routing(
        self, ids: Sequence[npt.NDArray[np.integer]], weights: Sequence[npt.NDArray[np.floating]]
    ) -> tuple[npt.NDArray[np.float32], float]:
        """The token's signature, of length 1, and its conflict."""
        places, shares, conflicts = [], [], []
        for start, count, chosen, gates in zip(self._starts, self._counts, ids, weights, strict=False):
            there = chosen < count
            mass = np.where(there, np.maximum(gates, 0.0), 0.0).astype(np.float64)
            total = mass.sum()
            if not total > 0:
                continue
            share = mass / total
            places.append(start + chosen[there].astype(np.int64))
            shares.append(share[there])
            conflicts.append(_evenness(share))
        if not places:
            return np.zeros(self._signatures.shape[1], np.float32), 0.0
        vector = np.bincount(np.concatenate(places), np.concatenate(shares), self._signatures.shape[1])
        signature: npt.NDArray[np.float32] = (vector / np.linalg.norm(vector)).astype(np.float32)
        return signature, float(np.mean(conflicts))

    def _novelty(self, signature: npt.NDArray[np.float32]) -> float:
        kept = self._signatures[: self._kept]
        nearest = float((kept @ signature).max()) if self._kept else 0.0
        if self._kept < RESERVOIR:
            place = self._kept
            self._kept += 1
        else:
            place = int(self._draw.integers(RESERVOIR))
        self._signatures[place] = signature
        return min(1.0, max(0.0, 1.0 - nearest))


def check_reward(value: float) -> float:
    """The reward, if it is between 0 and 1.

    Raises:
        UsageError: If it is not.
    """
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"A reward is between 0 and 1, not {value}.", got=value)
    return float(value)


def _evenness(shares_K: npt.NDArray[np.float64]) -> float:
    """Entropy of shares that sum to 1, divided by the most that so many can have."""
    if len(shares_K) < 2:
        return 0.0
    positive = shares_K[shares_K > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    return min(1.0, max(0.0, entropy / float(np.log(len(shares_K)))))
