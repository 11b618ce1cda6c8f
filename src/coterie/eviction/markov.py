"""Evicts what is least likely to be used soon, as learned from how experts were used and what followed what."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain
from math import exp, inf
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from coterie.eviction.protocol import K
from coterie.eviction.selection import take_until

_PHASE_DISCOUNT = 0.6
"""How much less a use one forward pass later is worth."""
_BANKS_PER_EVICTION = 4
_HALF_PASS = 0.5
"""How long an order of leaving holds: until there is an eviction for every four banks, or half a pass is over."""
_INTERLUDE = 2
"""Moves between banks after which a bank's visit still counts as the same: a prefetch for another bank is no visit."""
_HALVING_VISITS = 4096
"""After so many visits old transitions count half, so that they can change with the text (and fit in 16 bits)."""

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


class MarkovPolicy(Generic[K]):
    """Predicts the next use of every expert, and evicts the one whose next use is the least likely and the latest.

    A *bank* holds the keys that differ in their last member only (other keys are of one bank), and a *visit* is the
    set of its keys that one forward pass uses. From the visits each bank learns how likely each of its experts is to
    be used at the next one (:class:`Transitions`): from its use in the past, on three time scales, and from what was
    used at the visits that followed the present members. What is learned about a record outlives its eviction; the
    policy knows every key that was ever used, of which a model has as many as experts.

    Banks are visited in turn, so the experts of the present one are not needed before a whole pass is over, and those
    of the following one at once. The probability is therefore multiplied by 0.6 to the power of the share of a pass
    that lies between (in (0, 1]; banks in the order in which they were first heard of). The lowest product leaves
    first; ties by the order of first appearance.

    A visit ends when the bank is come back to after others; with three banks or fewer, also when one of its members
    is used again. Uses are only noted as they happen. The order of leaving holds until there is an eviction for every
    four banks, or half a pass is over; then all visits in between are learned from in one go, but for the present one,
    and the order is made anew. What has been used meanwhile leaves after everything else. The fewer misses there are,
    the less this costs, and where there are many it loses next to no hits. Three banks or fewer have too little to
    save: their order is made anew for each eviction, and nothing is held back.

    Of what the last tokens of a prompt used it learns at once, as if each had been a forward pass (:meth:`observe`).

    Cold insertions are no uses, and their order says nothing about that of the banks; they leave before all others, the
    latest one first, until they are used.
    """

    def __init__(self) -> None:
        self._transitions = Transitions()
        self._visits: list[Visit] = []
        self._visit_of: dict[Hashable, Visit] = {}
        self._places: dict[K, tuple[Visit, int]] = {}
        # By bank, then by number less one, as no expert has the number 0.
        self._keys: list[list[K]] = []
        self._sizes: dict[K, int] = {}
        self._cold: dict[K, None] = {}
        # Visits that may have something to learn from.
        self._open: dict[Visit, None] = {}
        self._current: Visit | None = None
        self._moves = 0
        # Whether there are too few banks to tell a short interlude from a pass.
        self._few = True
        # By bank and number: 0 where the record may leave; infinite where not, as it is not resident or is cold.
        self._absence: Floats = np.full((0, 0), inf, dtype=np.float32)
        # The order of leaving: the products as they were when it was made; infinite as above.
        self._ranking = self._absence.copy()
        self._ranked_at = -inf
        self._evictions = 0
        # The discounts of a pass twice over: every bank's view of them is a slice.
        self._discounts: Floats = np.zeros(0, dtype=np.float32)

    def insert(self, key: K, nbytes: int, *, cold: bool = False) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        self._sizes[key] = nbytes
        if cold:
            self._cold[key] = None
            return
        visit, number = self._places.get(key) or self._meet(key)
        self._absence[visit.bank, number] = 0
        if number not in visit.observed:
            self.hit(key)

    def hit(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        if self._cold and key in self._cold:
            del self._cold[key]
            visit, number = self._places.get(key) or self._meet(key)
            self._absence[visit.bank, number] = 0
        else:
            visit, number = self._places[key]
        if visit is not self._current:
            self._turn_to(visit)
        elif self._few and number in visit.members:
            self._begin(visit)
        visit.members[number] = None

    def observe(self, visits: Sequence[Sequence[K]]) -> None:
        """See :class:`~coterie.eviction.Observing`."""
        runs = [[self._places.get(key) or self._meet(key) for key in keys] for keys in visits if keys]
        if not runs:
            return
        visit = runs[0][0][0]
        if visit is not self._current:
            self._leave_current()
            self._current = visit
        if len(visit.members) > visit.known:
            self._learn(list(self._open))
        self._open[visit] = None
        self._transitions.learn_run(visit, [[number for _, number in run] for run in runs])
        visit.observed = frozenset(number for run in runs for _, number in run)
        self._count(visit, len(runs))
        self._ranked_at = -inf

    def remove(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        del self._sizes[key]
        if self._cold and key in self._cold:
            del self._cold[key]
            return
        visit, number = self._places[key]
        self._absence[visit.bank, number] = inf
        self._ranking[visit.bank, number] = inf
        self._evictions += 1

    def victims(self, needed_bytes: int, is_evictable: Callable[[K], bool]) -> list[K]:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        if needed_bytes > 0 and self._current is not None:
            # Nearly always the first one that is cold or that the ranking names is enough, and may leave.
            key = next(filter(is_evictable, reversed(self._cold)), None)
            if key is None and (first := self._first(self._current)) is not None and is_evictable(first):
                key = first
            if key is not None and self._sizes[key] >= needed_bytes:
                return [key]
        return take_until(self._order(), self._sizes, needed_bytes, is_evictable)

    def _first(self, current: Visit) -> K | None:
        """The first to leave, unless it has been used since the ranking was made, as all others have then."""
        self._rank_if_due(current)
        ranking, width = self._ranking, self._transitions.width
        while True:
            bank, number = divmod(int(ranking.argmin()), width)
            if ranking[bank, number] == inf:
                return None
            if self._is_held_back(bank, number):
                ranking[bank, number] = inf
                continue
            return self._keys[bank][number - 1]

    def _order(self) -> Iterator[K]:
        """All that may leave, first one first."""
        yield from reversed(self._cold)
        if self._current is None:
            return
        self._rank_if_due(self._current)
        # What has been used since the ranking was made comes last, in the order of what was known before.
        flat, width = self._ranking.ravel(), self._transitions.width
        for place in flat.argsort(kind="stable").tolist():
            if flat[place] == inf:
                break
            bank, number = divmod(place, width)
            if not self._is_held_back(bank, number):
                yield self._keys[bank][number - 1]
        products = self._products(self._current).ravel()
        for place in products.argsort(kind="stable").tolist():
            if products[place] == inf:
                break
            bank, number = divmod(place, width)
            if flat[place] == inf or self._is_held_back(bank, number):
                yield self._keys[bank][number - 1]

    def _is_held_back(self, bank: int, number: int) -> bool:
        """Whether the ranking does not know about the last use of an expert."""
        return not self._few and self._visits[bank].is_unlearned(number)

    def _turn_to(self, visit: Visit) -> None:
        """Another bank's turn has come."""
        moves = self._moves
        self._leave_current()
        self._current = visit
        if self._few or moves - visit.left_at >= _INTERLUDE:
            self._begin(visit)
        else:
            self._open[visit] = None

    def _leave_current(self) -> None:
        if self._current is not None:
            self._current.left_at = self._moves
        self._moves += 1

    def _count(self, visit: Visit, more: int) -> None:
        """A bank has had more visits."""
        before, visit.count = visit.count, visit.count + more
        if visit.count // _HALVING_VISITS > before // _HALVING_VISITS:
            self._transitions.halve(visit.bank)

    def _begin(self, visit: Visit) -> None:
        """A new visit; if the one before is still to be learned from, this is the time."""
        if len(visit.members) > visit.known:
            self._learn(list(self._open))
            self._ranked_at = -inf
        visit.begin()
        self._open[visit] = None
        self._count(visit, 1)

    def _learn(self, visits: list[Visit]) -> None:
        for visit in visits:
            del self._open[visit]
        self._transitions.learn([visit for visit in visits if len(visit.members) > visit.known])

    def _rank_if_due(self, current: Visit) -> None:
        """Learns from the visits since the last ranking, but for the present one, and makes it anew."""
        banks = len(self._visits)
        fresh = self._evictions * _BANKS_PER_EVICTION < banks and self._moves - self._ranked_at < _HALF_PASS * banks
        if fresh and not self._few:
            return
        self._learn([visit for visit in self._open if visit is not current])
        self._products(current, out=self._ranking[:banks])
        self._ranked_at = self._moves
        self._evictions = 0

    def _products(self, current: Visit, out: Floats | None = None) -> Floats:
        """How likely and how soon each record is used; infinite where it cannot leave."""
        banks = len(self._visits)
        first = banks - 1 - current.bank
        products: Floats = np.add(self._transitions.likelihood[:banks], self._absence[:banks], out=out)
        products *= self._discounts[first : first + banks, None]
        return products

    def _meet(self, key: K) -> tuple[Visit, int]:
        """Gives a key its place: the next number of its bank."""
        name = key[:-1] if isinstance(key, tuple) else ()
        visit = self._visit_of.get(name)
        if visit is None:
            visit = self._visit_of[name] = Visit(len(self._visits))
            self._visits.append(visit)
            self._keys.append([])
            self._few = len(self._visits) <= _INTERLUDE + 1
        keys = self._keys[visit.bank]
        keys.append(key)
        self._transitions.reserve(len(self._visits), len(keys))
        self._reserve()
        place = self._places[key] = (visit, len(keys))
        return place

    def _reserve(self) -> None:
        """Makes the tables as large as what has been learned."""
        banks, shape = len(self._visits), self._transitions.likelihood.shape
        if self._absence.shape != shape:
            self._absence, self._ranking = (_grown(table, shape, inf) for table in (self._absence, self._ranking))
        if 2 * banks != len(self._discounts):
            once = _PHASE_DISCOUNT ** (np.arange(1, banks + 1, dtype=np.float32) / banks)
            self._discounts = np.concatenate([once, once])


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
        self.likelihood = _grown(self.likelihood, (rows, width))
        self._sums = _grown(self._sums, (rows, width, len(_TIME_SCALES)))
        self._decays = np.tile(_DECAYS, (width, 1))
        if self._expected is not None:
            self._expected = _grown(self._expected, (rows, width))
        self._last = _grown(self._last, (rows, self._last.shape[1]))
        self._first_rows = np.arange(rows, dtype=np.intp)[:, None] * width
        if width > _LARGEST_TABLE:
            self._followed = None
        elif self._followed is not None:
            self._followed = _grown(self._followed, (rows, width, width))

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
            self._last = _grown(self._last, (len(self._last), length))
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


def _grown(array: npt.NDArray[N], shape: tuple[int, ...], rest: float = 0) -> npt.NDArray[N]:
    """The same numbers in a larger array, of which the rest is filled with one number."""
    # Zeros take no memory before they are written.
    made = np.zeros(shape, dtype=array.dtype)
    if rest:
        made.fill(rest)
    made[tuple(slice(length) for length in array.shape)] = array
    return made
