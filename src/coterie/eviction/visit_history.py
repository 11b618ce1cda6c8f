"""The last visits of every bank of experts, and what they say about the next one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import exp, inf
from typing import TypeVar

import numpy as np
import numpy.typing as npt

N = TypeVar("N", bound=np.generic)
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

NOBODY = 0
"""A number that no expert has."""

LAST_VISITS = 256
"""Visits of each bank that are remembered."""
_MOST_ENTRIES = 4096
"""Members of the visits that are remembered of a bank: where visits are large, fewer of them are remembered."""
_FEWEST_VISITS = 16

_SHARPNESS = 14.0
"""How much more a visit counts that is more like the present: e to the power of this, from none to all in common.
The constants here were chosen on five recordings of three models that ``benchmarks/bench_eviction.py`` does not
replay; the result hardly depends on their exact values."""
_SPAN = 0.35
"""Of a pass: visits that long ago count 1/e for how alike two moments are."""
_FOLLOWING_DISCOUNT = 0.6
"""How much less a use counts one visit later."""
_DOUBLINGS = (1, 2, 4, 8)
"""Sixteen visits are looked at after each one. Each step doubles how many."""
_TIME_SCALES = (1.5, 64.0)
"""Time scales of use, in visits: of what was used a moment ago, and of what is used at any time."""
_LATEST_SHARE = 0.08
"""Weight of what was used a moment ago."""
_PRIOR = 1.0
"""Visits like the present one that count as much as the use at any time does."""
_EXPECTED_PRIOR = 6.0
"""The same, where something is expected beforehand."""
_EXPECTED_SHARE = 0.5
"""Weight of what was expected beforehand, beside the use that was seen. Anything from 0.3 to 0.6 does as well."""
_NEVER = 1e-20
"""What counts for no use: sums that decay to less than the smallest normal number make arithmetic slow."""
_FIRST_WIDTH = 64
_WIDTH_STEP = 16
_FIRST_MEMBERS = 4

_DECAYS = np.array([[exp(-1 / scale) for scale in _TIME_SCALES]], dtype=np.float32)


class Visit:
    """What one forward pass uses of one bank of experts: the bank's present visit.

    Attributes:
        bank: Number of the bank.
        members: Numbers of the experts that it has used so far.
        known: How many of the members have been learned from.
        observed: Numbers whose use was told of at once, with that of others; until the next visit their insertion is no
            use.
        left_at: The policy's count of moves before another bank's turn came.
    """

    __slots__ = ("bank", "known", "left_at", "members", "observed")

    def __init__(self, bank: int) -> None:
        self.bank = bank
        self.members: dict[int, None] = {}
        self.known = 0
        self.observed: frozenset[int] = frozenset()
        self.left_at = -inf

    def begin(self) -> None:
        """A new visit. The members so far must have been learned from."""
        self.members = {}
        self.known = 0
        self.observed = frozenset()

    @property
    def has_news(self) -> bool:
        """Whether there is something to learn from."""
        return len(self.members) > self.known

    def is_unlearned(self, number: int) -> bool:
        """Whether an expert is a member and nothing has been learned from this visit yet."""
        return not self.known and number in self.members


class VisitHistory:
    """The experts that compete behind each router, as numbers from 1 on, and the last visits of each bank.

    Two moments are alike if their visits have members in common. Take all visits of all banks, the latest one first, as
    number v = 0, 1, 2, ... Of the members of number v, let ``o_v(a)`` be the share that the same bank used a visits
    earlier as well. The likelihood that expert j is used soon is then::

        alike(a)      = (1 - d) · Σ_v d^v · o_v(a)                        d = exp(-1 / (0.35 · number of banks))
        weight(a)     = exp(14 · (alike(a) - max alike))
        followed_j    = Σ_a weight(a) · Σ_n 0.6^(n-1) · [j was used n visits after that]    n = 1 … 16, as far as known
        next_j        = (followed_j + use_j) / (the same sums without the brackets + 1)
        likelihood_j  = 0.92 · next_j + 0.08 · latest_j

    ``use_j`` and ``latest_j`` are means of past uses that weigh those n visits ago by exp(-n / 64) and exp(-n / 1.5).
    What came after moments like this one is expected to come again. It is a Markov model (Joseph, Grunwald:
    "Prefetching using Markov predictors", 1997) whose state is what all banks have used of late. As no state recurs
    exactly, those alike stand for it, as in kernel regression (Nadaraya: "On estimating regression", 1964). To look
    several visits ahead is the successor representation (Dayan: "Improving generalization for temporal difference
    learning: the successor representation", 1993).

    Where something is expected of experts (:meth:`expect`), ``use_j`` is the mean of it and of the above, and counts
    six times as much.

    All banks are kept in one array of each kind, and the visits of banks that follow each other are learned from
    together: what costs time is the number of numpy's calls, not their size.

    Attributes:
        width: E, numbers that each bank has room for.
        likelihood: float32 [B, E]; what it says of nobody is never read.
        counts: int [B]; how many visits of each bank have been learned from.
    """

    def __init__(self) -> None:
        self.width = _FIRST_WIDTH
        self.likelihood: Floats = np.zeros((0, _FIRST_WIDTH), dtype=np.float32)
        self.counts: Indices = np.zeros(0, dtype=np.intp)
        # [B, E, S]: by bank, number and time scale. The decays of a bank lie as its sums do, which is faster.
        self._sums: Floats = np.zeros((0, _FIRST_WIDTH, len(_TIME_SCALES)), dtype=np.float32)
        self._decays = _DECAYS
        # [B, E]: likelihoods that were known beforehand, if any were.
        self._expected: Floats | None = None
        # [B, H, M]: members of the last visits, latest first, as places in [B, E]; nobody where a visit had fewer.
        self._visits: Indices = np.zeros((0, LAST_VISITS, _FIRST_MEMBERS), dtype=np.intp)
        # [H]: how alike the present and each moment are that is 1, 2, ... visits ago.
        self._alike: Floats = np.zeros(LAST_VISITS, dtype=np.float32)
        self._decay = 0.0
        # By place: whether an expert is in its bank's last visit.
        self._is_member: Floats = np.zeros(0, dtype=np.float32)

    def reserve(self, banks: int, experts: int) -> None:
        """Makes room for so many banks, and for numbers up to ``experts`` in each."""
        self._decay = exp(-1 / (_SPAN * banks))
        rows = len(self.likelihood)
        if banks <= rows and experts < self.width:
            return
        before = self.width
        # A model's banks are all met within its first pass, its experts one after the other.
        more = rows if banks <= rows else max(banks, 2 * rows)
        while experts >= self.width:
            self.width += max(1, self.width // (8 * _WIDTH_STEP)) * _WIDTH_STEP
        width = self.width
        self.likelihood = grown(self.likelihood, (more, width))
        self.counts = grown(self.counts, (more,))
        self._sums = grown(self._sums, (more, width, len(_TIME_SCALES)))
        self._decays = np.tile(_DECAYS, (width, 1))
        if self._expected is not None:
            self._expected = grown(self._expected, (more, width))
        self._visits = grown(self._visits, (more, *self._visits.shape[1:]))
        shift = np.arange(more, dtype=np.intp)
        shift[:rows] *= width - before
        shift[rows:] *= width
        self._visits += shift[:, None, None]
        self._is_member = np.zeros(more * width, dtype=np.float32)

    def expect(self, bank: int, number: int, likelihood: float) -> None:
        """How likely the use of an expert at any visit is, as is known beforehand; it replaces what was said before."""
        if self._expected is None:
            self._expected = np.zeros_like(self.likelihood)
        change = likelihood - float(self._expected[bank, number])
        self._expected[bank, number] = likelihood
        # Until the bank's next visit is learned from.
        self.likelihood[bank, number] += _EXPECTED_SHARE * change

    def learn(self, visits: Sequence[Visit]) -> None:
        """Takes in the members of visits that are new since the last time. The visits are of distinct banks.

        Members that are late, as some of their visit have been learned from before, count as used; how alike moments
        are stays as it is.
        """
        run: list[Visit] = []
        for visit in visits:
            if visit.known:
                self._extend(visit)
                continue
            if run and visit.bank != run[-1].bank + 1:
                self._add(run)
                run = []
            run.append(visit)
        if run:
            self._add(run)

    def learn_run(self, visit: Visit, following: Sequence[Sequence[int]]) -> None:
        """Takes in visits of one bank that follow each other, and the present one, all of whose members are known.

        Args:
            visit: The present one; the last one that follows is it afterwards.
            following: The numbers that each of them used; W of them, none empty.
        """
        bank, count = visit.bank, len(following)
        ages_W1 = np.arange(count - 1, -1, -1, dtype=np.float32)[:, None]
        is_member_WE = np.zeros((count, self.width), dtype=np.float32)
        for row, numbers in zip(is_member_WE, following, strict=True):
            row[list(numbers)] = 1
        sums_ES = self._sums[bank]
        sums_ES *= self._decays**count
        sums_ES += is_member_WE.T @ _DECAYS**ages_W1
        sums_ES += _NEVER
        self._make_room(max(map(len, following)))
        visits_HM = self._visits[bank]
        kept = len(visits_HM)
        latest = following[-kept:]
        visits_HM[len(latest) :] = visits_HM[: kept - len(latest)].copy()
        visits_HM[: len(latest)] = bank * self.width
        for row, numbers in zip(visits_HM, reversed(latest), strict=False):
            row[: len(numbers)] += numbers
        self.counts[bank] += count
        visit.members = dict.fromkeys(following[-1])
        visit.known = len(visit.members)
        self._predict(slice(bank, bank + 1), self._liken(slice(bank, bank + 1), [visit]))

    def _add(self, visits: list[Visit]) -> None:
        """Takes in V new visits of banks that follow each other."""
        first, count = visits[0].bank, len(visits)
        banks = slice(first, first + count)
        lengths = [len(visit.members) for visit in visits]
        most = max(lengths)
        self._make_room(most)
        visits_VHM = self._visits[banks]
        visits_VHM[:, 1:] = visits_VHM[:, :-1].copy()
        nobody_V1 = np.arange(first, first + count, dtype=np.intp)[:, None] * self.width
        visits_VHM[:, 0] = nobody_V1
        if min(lengths) == most:
            members = chain.from_iterable([visit.members for visit in visits])
            visits_VHM[:, 0, :most] += np.fromiter(members, dtype=np.intp, count=count * most).reshape(count, most)
        else:
            for row, visit in zip(visits_VHM[:, 0], visits, strict=True):
                row[: len(visit.members)] += list(visit.members)
        sums_VES = self._sums[banks]
        sums_VES *= self._decays
        sums_VES += _NEVER
        self._sums.reshape(-1, len(_TIME_SCALES))[visits_VHM[:, 0]] += 1
        self.counts[banks] += 1
        self._predict(banks, self._liken(banks, visits))
        for visit, length in zip(visits, lengths, strict=True):
            visit.known = length

    def _extend(self, visit: Visit) -> None:
        """Takes in late members of a visit that was learned from before."""
        bank, late = visit.bank, list(visit.members)[visit.known :]
        self._make_room(len(visit.members))
        self._visits[bank, 0, visit.known : len(visit.members)] = np.array(late) + bank * self.width
        self._sums[bank][late] += 1
        visit.known = len(visit.members)
        self._predict(slice(bank, bank + 1), self._alike[None])

    def _make_room(self, members: int) -> None:
        """Makes room for visits of so many members."""
        banks, kept, most = self._visits.shape
        if members <= most:
            return
        most = members + members % 2
        kept = min(kept, max(_FEWEST_VISITS, _MOST_ENTRIES // most))
        nobody = np.arange(banks, dtype=np.intp)[:, None, None] * self.width
        visits = np.repeat(np.repeat(nobody, kept, axis=1), most, axis=2)
        visits[:, :, : self._visits.shape[2]] = self._visits[:, :kept]
        self._visits = visits
        self._alike = self._alike[:kept].copy()

    def _liken(self, banks: slice, visits: Sequence[Visit]) -> Floats:
        """How alike the present is to each earlier moment, after each of V visits: [V, H]."""
        visits_VHM = self._visits[banks]
        count, kept, most = visits_VHM.shape
        is_member = self._is_member[: (banks.start + count) * self.width]
        is_member.fill(0)
        is_member.put(visits_VHM[:, 0], 1)
        is_member[NOBODY :: self.width] = 0
        # A product adds up faster than a sum does.
        common = is_member.take(visits_VHM[:, 1:]) @ np.ones(most, dtype=np.float32)
        powers_V1 = (self._decay ** np.arange(1, count + 1, dtype=np.float32))[:, None].astype(np.float32)
        sizes_V1 = np.array([[len(visit.members)] for visit in visits], dtype=np.float32)
        common *= (1 - self._decay) / (sizes_V1 * powers_V1)
        alike_VH = np.zeros((count, kept), dtype=np.float32)
        np.cumsum(common, axis=0, out=alike_VH[:, : kept - 1])
        alike_VH += self._alike
        alike_VH *= powers_V1
        self._alike = alike_VH[-1].copy()
        return alike_VH

    def _predict(self, banks: slice, alike_VH: Floats) -> None:
        """Says what is likely next."""
        visits_VHM = self._visits[banks]
        count, kept, most = visits_VHM.shape
        # Column a - 1 stands for the moment a visits ago, of which there are as many as visits before the last one.
        known_VH = np.arange(kept) < np.minimum(self.counts[banks, None] - 1, kept - 1)
        weights_VH = np.where(known_VH, alike_VH, -inf)
        highest_V1 = np.maximum(weights_VH.max(axis=1, keepdims=True), 0)
        weights_VH -= highest_V1
        weights_VH *= _SHARPNESS
        np.exp(weights_VH, out=weights_VH)
        # Column m now becomes the weight of the visit of age m, as one that followed.
        for step in _DOUBLINGS:
            weights_VH[:, :-step] += _FOLLOWING_DISCOUNT**step * weights_VH[:, step:]
        places = visits_VHM.ravel()
        end = (banks.start + count) * self.width
        followed = np.bincount(places, weights=np.repeat(weights_VH.ravel(), most), minlength=end)
        prior = _PRIOR if self._expected is None else _EXPECTED_PRIOR
        use_VES = self._sums[banks] * (1 - _DECAYS)
        use_VE = use_VES[:, :, 1]
        if self._expected is not None:
            use_VE = _EXPECTED_SHARE * self._expected[banks] + (1 - _EXPECTED_SHARE) * use_VE
        likelihood_VE = self.likelihood[banks]
        likelihood_VE[:] = followed[end - likelihood_VE.size :].reshape(count, -1)
        likelihood_VE += prior * use_VE
        likelihood_VE *= (1 - _LATEST_SHARE) / (weights_VH.sum(axis=1, keepdims=True) + prior)
        likelihood_VE += _LATEST_SHARE * use_VES[:, :, 0]


def grown(array: npt.NDArray[N], shape: tuple[int, ...], rest: float = 0) -> npt.NDArray[N]:
    """The same numbers in a larger array, of which the rest is filled with one number."""
    # Zeros take no memory before they are written.
    made = np.zeros(shape, dtype=array.dtype)
    if rest:
        made.fill(rest)
    made[tuple(slice(length) for length in array.shape)] = array
    return made
