"""What one bank of experts has taught: how often each is used, and what is used after what."""

from __future__ import annotations

from math import exp, inf

import numpy as np
import numpy.typing as npt

_TIME_SCALES = (1.5, 8.0, 64.0)
_SHARES = (0.3, 0.3, 0.4)
"""Time scales of use, in visits, and the weight of each. These and the two below were tuned on one recorded trace of
DeepSeek-V2-Lite, which ``benchmarks/bench_eviction.py`` marks; the result hardly depends on their exact values."""
_TRANSITION_SHARE = 0.8
"""Weight of what followed the present members, beside what is used at any time."""
_PRIOR_VISITS = 3.0
"""Transitions from an expert that must be seen before they count as much as plain use does."""
_HALVING_VISITS = 4096
"""After so many visits old transitions count half, so that they can change with the text (and fit in 16 bits)."""
_LARGEST_TABLE = 1024
"""Experts of a bank up to which transitions are kept: two bytes for each pair."""
_FIRST_WIDTH = 64

_DECAYS = np.array([[exp(-1 / scale)] for scale in _TIME_SCALES], dtype=np.float32)
_WEIGHTS = np.array(
    [share * (1 - exp(-1 / scale)) for share, scale in zip(_SHARES, _TIME_SCALES, strict=True)], dtype=np.float32
)


class Bank:
    """The experts that compete behind one router, as numbers from 0 in the order of first appearance.

    The likelihood that expert j is used at the next visit, given the members a of the present one, is::

        use_j  = Σ_s share_s · (1 − d_s) · Σ_visits with j  d_s^age          d_s = exp(−1 / scale_s)
        next_j = mean_a (followed_aj + 3 · use_j) / (visits_a + 3)
        likelihood_j = 0.2 · use_j + 0.8 · next_j

    where ``followed_aj`` counts the visits with a that a visit with j came after, and ``visits_a`` those that any
    came after. The first line is LRFU's combined recency and frequency (Lee, Choi, Kim, Noh, Min, Cho, Kim: "LRFU: a
    spectrum of policies that subsumes the LRU and LFU policies", 2001) at three decays; the second a first-order
    Markov model, as prefetchers have it (Joseph, Grunwald: "Prefetching using Markov predictors", 1997), with the
    first as its prior.

    Attributes:
        number: Position among the banks.
        members: What the present visit has used.
        left_at: The policy's count of moves when another bank's turn came.
        width: Experts that the arrays have room for.
        likelihood: float32 [width].
        absence: float32 [width]: 0 where the record may be evicted, else infinity.
    """

    __slots__ = (
        "_followed", "_fresh", "_previous", "_sums", "_visits", "_visits_begun", "absence", "left_at",
        "likelihood", "members", "number", "width",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.members: dict[int, None] = {}
        self.left_at = -inf
        self.width = _FIRST_WIDTH
        self.likelihood = np.zeros(_FIRST_WIDTH, dtype=np.float32)
        self.absence = np.full(_FIRST_WIDTH, inf, dtype=np.float32)
        self._sums = np.zeros((len(_TIME_SCALES), _FIRST_WIDTH), dtype=np.float32)
        self._visits = np.zeros(_FIRST_WIDTH, dtype=np.float32)
        self._followed: npt.NDArray[np.uint16] | None = np.zeros((_FIRST_WIDTH, _FIRST_WIDTH), dtype=np.uint16)
        self._previous: npt.NDArray[np.intp] | None = None
        self._fresh: list[int] = []
        self._visits_begun = 0

    def reserve(self, count: int) -> None:
        """Makes room for so many experts."""
        if count <= self.width:
            return
        added = self.width
        self.width += added
        self.likelihood = np.pad(self.likelihood, (0, added))
        self.absence = np.pad(self.absence, (0, added), constant_values=inf)
        self._sums = np.pad(self._sums, ((0, 0), (0, added)))
        self._visits = np.pad(self._visits, (0, added))
        if self.width > _LARGEST_TABLE:
            self._followed = None
        elif self._followed is not None:
            self._followed = np.pad(self._followed, ((0, added), (0, added)))

    def begin_visit(self) -> None:
        """The members so far become what the next ones follow."""
        self.learn()
        self._sums *= _DECAYS
        self._visits_begun += 1
        if self._visits_begun % _HALVING_VISITS == 0 and self._followed is not None:
            self._followed >>= 1
            self._visits *= 0.5
        if self.members:
            self._previous = np.fromiter(self.members, dtype=np.intp, count=len(self.members))
            self._visits[self._previous] += 1
            self.members.clear()

    def use(self, index: int) -> None:
        """An expert is used by the present visit, for the first time in it."""
        self.members[index] = None
        self._fresh.append(index)

    def learn(self) -> bool:
        """Takes in the members that are new since the last call; whether there were any."""
        if not self._fresh:
            return False
        fresh = np.array(self._fresh, dtype=np.intp)
        # A whole row is added faster than a few columns are.
        used = np.zeros(self.width, dtype=np.float32)
        used[fresh] = 1
        self._sums += used
        use = _WEIGHTS @ self._sums
        followed = self._followed
        if followed is None:
            self.likelihood = use
        else:
            if self._previous is not None:
                followed[self._previous[:, None], fresh] += 1
            members = fresh
            if len(fresh) < len(self.members):
                members = np.fromiter(self.members, dtype=np.intp, count=len(self.members))
            trust = 1 / (self._visits[members] + _PRIOR_VISITS)
            share = _TRANSITION_SHARE / len(members)
            use *= 1 - _TRANSITION_SHARE + share * _PRIOR_VISITS * float(trust.sum())
            trust *= share
            use += trust @ followed[members]
            self.likelihood = use
        self._fresh.clear()
        return True
