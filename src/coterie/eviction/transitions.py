"""What is learned from the visits of banks: how likely each expert is used at the next one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import exp, inf
from typing import TypeVar

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
_LARGEST_TABLE = 1024
"""Experts of a bank up to which transitions are kept: two bytes for each pair."""
_FIRST_WIDTH = 64
_WIDTH_STEP = 16
_EXPECTED_SHARE = 0.5
"""Weight of what was expected beforehand, beside the use that was seen. Tuned, like those above, on the one trace: a
profile of its first half, hit rates of its second. Anything from 0.3 to 0.6 does as well."""
_NEVER = 1e-20
"""What counts for no use: sums that decay to less than the smallest normal number make arithmetic slow."""

_DECAYS = np.array([[exp(-1 / scale) for scale in _TIME_SCALES]], dtype=np.float32)
_WEIGHTS = np.array(
    [share * (1 - exp(-1 / scale)) for share, scale in zip(_SHARES, _TIME_SCALES, strict=True)], dtype=np.float32
)

N = TypeVar("N", bound=np.generic)
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

NOBODY = 0
"""A number that no expert has. Every visit has it as its first member."""


class Visit:
    """What one forward pass uses of one bank of experts: the bank's present visit.

    Attributes:
        bank: Number of the bank.
        members: Numbers of the experts that it has used so far, after :data:`NOBODY`.
        previous: The members of the visit before.
        known: How many of the members have been learned from; 1 for a new visit, as nobody is known.
        observed: Numbers whose use was told of at once, with that of others; until the next visit their insertion is no
            use.
        count: How many visits the bank has had.
        left_at: The policy's count of moves before another bank's turn came.
    """

    __slots__ = ("bank", "count", "known", "left_at", "members", "observed", "previous")

    def __init__(self, bank: int) -> None:
        self.bank = bank
        self.members: dict[int, None] = {NOBODY: None}
        self.previous = self.members
        self.known = 1
        self.observed: frozenset[int] = frozenset()
        self.count = 0
        self.left_at = -inf

    def begin(self) -> None:
        """The members so far become what the next ones follow. They must have been learned from."""
        self.previous = self.members
        self.members = {NOBODY: None}
        self.known = 1
        self.observed = frozenset()

    def is_unlearned(self, number: int) -> bool:
        """Whether an expert is a member and nothing has been learned from this visit yet."""
        return self.known == 1 and number in self.members

    def continues(self, other: Visit) -> bool:
        """Whether this is a visit of the next bank, and both are of one shape, so that arrays can hold them."""
        same = len(self.members) == len(other.members) and len(self.previous) == len(other.previous)
        return same and self.bank == other.bank + 1


class Transitions:
    """The experts that compete behind each router, as numbers from 1 on.

    The likelihood that expert j is used at the next visit, given the members a of the present one, is::

        use_j  = Σ_s share_s · (1 − d_s) · Σ_visits with j  d_s^age          d_s = exp(−1 / scale_s)
        next_j = mean_a (followed_aj + 3 · use_j) / (visits_a + 3)
        likelihood_j = 0.2 · use_j + 0.8 · next_j

    where ``followed_aj`` counts the visits with a that a visit with j came after, and ``visits_a`` those that any
    came after. The first line is LRFU's combined recency and frequency (Lee, Choi, Kim, Noh, Min, Cho, Kim: "LRFU: a
    spectrum of policies that subsumes the LRU and LFU policies", 2001) at three decays; the second a first-order
    Markov model, as prefetchers have it (Joseph, Grunwald: "Prefetching using Markov predictors", 1997), with the
    first as its prior.

    Where something is expected of experts (:meth:`expect`), ``use_j`` is the mean of it and of the above.

    All banks are kept in one array of each kind, and the visits of banks that follow each other are learned from
    together: what costs time is the number of numpy's calls, not their size.

    Attributes:
        width: E, numbers that each bank has room for.
        likelihood: float32 [B, E]; what it says of nobody is never read.
    """

    def __init__(self) -> None:
        self.width = _FIRST_WIDTH
        self.likelihood: Floats = np.zeros((0, _FIRST_WIDTH), dtype=np.float32)
        # [B, E, S]: by bank, number and time scale. The decays of a bank lie as its sums do, which is faster.
        self._sums: Floats = np.zeros((0, _FIRST_WIDTH, len(_TIME_SCALES)), dtype=np.float32)
        self._decays = _DECAYS
        # [B, E]: likelihoods that were known beforehand, if any were.
        self._expected: Floats | None = None
        # followed_aj; since nobody is in every visit, their column holds visits_a.
        self._followed: npt.NDArray[np.uint16] | None = np.zeros((0, _FIRST_WIDTH, _FIRST_WIDTH), dtype=np.uint16)
        # Members of the visit that was last learned from, as far as it had some.
        self._last: Indices = np.full((0, 1), NOBODY, dtype=np.intp)
        self._first_rows: Indices = np.zeros((0, 1), dtype=np.intp)

    def reserve(self, banks: int, experts: int) -> None:
        """Makes room for so many banks, and for numbers up to ``experts`` in each."""
        rows = len(self.likelihood)
        if banks <= rows and experts < self.width:
            return
        # A model's banks are all met within its first pass, its experts one after the other.
        rows = rows if banks <= rows else max(banks, 2 * rows)
        while experts >= self.width:
            self.width += max(1, self.width // (8 * _WIDTH_STEP)) * _WIDTH_STEP
        width = self.width
        self.likelihood = grown(self.likelihood, (rows, width))
        self._sums = grown(self._sums, (rows, width, len(_TIME_SCALES)))
        self._decays = np.tile(_DECAYS, (width, 1))
        if self._expected is not None:
            self._expected = grown(self._expected, (rows, width))
        self._last = grown(self._last, (rows, self._last.shape[1]))
        self._first_rows = np.arange(rows, dtype=np.intp)[:, None] * width
        if width > _LARGEST_TABLE:
            self._followed = None
        elif self._followed is not None:
            self._followed = grown(self._followed, (rows, width, width))

    def expect(self, bank: int, number: int, likelihood: float) -> None:
        """How likely the use of an expert at any visit is, as is known beforehand; it replaces what was said before."""
        if self._expected is None:
            self._expected = np.zeros_like(self.likelihood)
        change = likelihood - float(self._expected[bank, number])
        self._expected[bank, number] = likelihood
        # Until the bank's next visit is learned from.
        self.likelihood[bank, number] += _EXPECTED_SHARE * change

    def halve(self, bank: int) -> None:
        """What followed what so far counts half from now on."""
        if self._followed is not None:
            self._followed[bank] >>= 1

    def learn(self, visits: Sequence[Visit]) -> None:
        """Takes in the members of visits that are new since the last time. The visits are of distinct banks."""
        run: list[Visit] = []
        for visit in visits:
            if visit.known > 1:
                self._extend(visit)
                continue
            if run and not visit.continues(run[-1]):
                self._add(run)
                run = []
            run.append(visit)
        if run:
            self._add(run)

    def learn_run(self, visit: Visit, following: Sequence[Sequence[int]]) -> None:
        """Takes in visits of one bank that follow each other, and the present one, all of whose members are known.

        Args:
            visit: The present one; the last one that follows is it afterwards.
            following: The numbers that each of them used, without :data:`NOBODY`; W of them, none empty.
        """
        bank, count = visit.bank, len(following)
        is_member_WE = np.zeros((count, self.width), dtype=np.float32)
        is_member_WE[:, NOBODY] = 1
        for row, numbers in zip(is_member_WE, following, strict=True):
            row[list(numbers)] = 1
        ages_W1 = np.arange(count - 1, -1, -1, dtype=np.float32)[:, None]
        sums_ES = self._sums[bank]
        sums_ES *= self._decays**count
        sums_ES += is_member_WE.T @ _DECAYS**ages_W1
        sums_ES += _NEVER
        if self._followed is not None:
            before_1E = np.zeros((1, self.width), dtype=np.float32)
            before_1E[0, list(visit.members)] = 1
            previous_WE = np.concatenate([before_1E, is_member_WE[:-1]])
            self._followed[bank] += (previous_WE.T @ is_member_WE).astype(np.uint16)
        last = [*visit.members] if count == 1 else [NOBODY, *following[-2]]
        visit.previous = dict.fromkeys(last)
        visit.members = dict.fromkeys((NOBODY, *following[-1]))
        self._predict(slice(bank, bank + 1), np.array([list(visit.members)], dtype=np.intp))
        visit.known = len(visit.members)

    def _add(self, visits: list[Visit]) -> None:
        """Takes in V new visits of banks that follow each other, of M members each, which came after P."""
        first, count, length = visits[0].bank, len(visits), len(visits[0].members)
        banks = slice(first, first + count)
        first_rows_V1 = self._first_rows[banks]
        members = chain.from_iterable([visit.members for visit in visits])
        members_VM = np.fromiter(members, dtype=np.intp, count=count * length).reshape(count, length)
        rows_VM = members_VM + first_rows_V1
        sums_VES = self._sums[banks]
        sums_VES *= self._decays
        sums_VES += _NEVER
        self._sums.reshape(-1, len(_TIME_SCALES))[rows_VM] += 1
        if self._followed is not None:
            is_member_VE = np.zeros((count, self.width), dtype=np.uint16)
            is_member_VE.put(rows_VM - first_rows_V1[0], 1)
            # Whole rows are read and written faster than single elements are.
            table = self._followed.reshape(-1, self.width)
            previous_VP = self._last[banks, : len(visits[0].previous)] + first_rows_V1
            followed_VPE = table.take(previous_VP, axis=0)
            followed_VPE += is_member_VE[:, None]
            table[previous_VP] = followed_VPE
        self._predict(banks, members_VM)
        for visit in visits:
            visit.known = length

    def _extend(self, visit: Visit) -> None:
        """Takes in late members of a visit that was learned from before."""
        late = list(visit.members)[visit.known :]
        self._sums[visit.bank][late] += 1
        if self._followed is not None:
            self._followed[visit.bank][np.ix_(list(visit.previous), late)] += 1
        self._predict(slice(visit.bank, visit.bank + 1), np.array([list(visit.members)], dtype=np.intp))
        visit.known = len(visit.members)

    def _predict(self, banks: slice, members_VM: Indices) -> None:
        """Says what is likely after these members, and remembers them."""
        likelihood_VE = np.matmul(self._sums[banks], _WEIGHTS, out=self.likelihood[banks])
        if self._expected is not None:
            likelihood_VE *= 1 - _EXPECTED_SHARE
            likelihood_VE += _EXPECTED_SHARE * self._expected[banks]
        if self._followed is None:
            return
        length = members_VM.shape[1]
        if length > self._last.shape[1]:
            self._last = grown(self._last, (len(self._last), length))
        self._last[banks, :length] = members_VM
        rows_VM = members_VM[:, 1:] + self._first_rows[banks]
        followed_VME = self._followed.reshape(-1, self.width).take(rows_VM, axis=0).astype(np.float32)
        trust_VM = followed_VME[:, :, NOBODY] + _PRIOR_VISITS
        np.divide(_TRANSITION_SHARE / (length - 1), trust_VM, out=trust_VM)
        prior_V1 = np.add.reduce(trust_VM, axis=1, keepdims=True)
        prior_V1 *= _PRIOR_VISITS
        prior_V1 += 1 - _TRANSITION_SHARE
        likelihood_VE *= prior_V1
        likelihood_VE += np.matmul(trust_VM[:, None], followed_VME)[:, 0]


def grown(array: npt.NDArray[N], shape: tuple[int, ...], rest: float = 0) -> npt.NDArray[N]:
    """The same numbers in a larger array, of which the rest is filled with one number."""
    # Zeros take no memory before they are written.
    made = np.zeros(shape, dtype=array.dtype)
    if rest:
        made.fill(rest)
    made[tuple(slice(length) for length in array.shape)] = array
    return made
