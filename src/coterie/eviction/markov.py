"""Evicts what is least likely to be used soon, as learned from what followed when the routing was like this."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from math import inf
from typing import Generic

import numpy as np

from coterie.eviction.protocol import K
from coterie.eviction.selection import take_until
from coterie.eviction.visit_history import Floats, Visit, VisitHistory, grown

_PHASE_DISCOUNT = 0.6
"""How much less a use one forward pass later is worth."""
_BANKS_PER_EVICTION = 4
_HALF_PASS = 0.5
"""How long an order of leaving holds: until there is an eviction for every four banks, or half a pass is over."""
_MOST_PASSED = 16
"""Records that may not leave, as they are held or predicted, before all are put in order, which takes far longer
than to look for the next one."""
_INTERLUDE = 2
"""Moves between banks after which a bank's visit still counts as the same: a prefetch for another bank is no visit."""


class MarkovPolicy(Generic[K]):
    """Predicts the next use of every expert, and evicts the one whose next use is the least likely and the latest.

    A *bank* holds the keys that differ in their last member only (other keys are of one bank), and a *visit* is the
    set of its keys that one forward pass uses. It learns how likely each expert is to be used at its bank's next visits
    (:class:`~coterie.eviction.visit_history.VisitHistory`): from what was used after those moments in the past whose
    visits, of all banks, were most like the present ones. What is learned about a record outlives its eviction; the
    policy knows every key that was ever used, of which a model has as many as experts. Visits that reading ahead has
    begun before their turn are learned from in the order of the banks.

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
        self._history = VisitHistory()
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
        if visit.has_news:
            self._learn(list(self._open))
        self._open[visit] = None
        self._history.learn_run(visit, [[number for _, number in run] for run in runs])
        visit.observed = frozenset(number for run in runs for _, number in run)
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
            if key is None:
                key = self._first(self._current, is_evictable)
            if key is not None and self._sizes[key] >= needed_bytes:
                return [key]
        return take_until(self._order(), self._sizes, needed_bytes, is_evictable)

    def _first(self, current: Visit, is_evictable: Callable[[K], bool]) -> K | None:
        """The first to leave of those that may.

        None if it has been used since the ranking was made, as all others have then, or is not among the first few.
        """
        self._rank_if_due(current)
        ranking, width = self._ranking, self._history.width
        passed: list[tuple[int, int, np.float32]] = []
        found: K | None = None
        while len(passed) < _MOST_PASSED:
            bank, number = divmod(int(ranking.argmin()), width)
            product = ranking[bank, number]
            if product == inf:
                break
            ranking[bank, number] = inf
            if self._is_held_back(bank, number):
                continue
            passed.append((bank, number, product))
            key = self._keys[bank][number - 1]
            if is_evictable(key):
                found = key
                break
        for bank, number, product in passed:
            ranking[bank, number] = product
        return found

    def _order(self) -> Iterator[K]:
        """All that may leave, first one first."""
        yield from reversed(self._cold)
        if self._current is None:
            return
        self._rank_if_due(self._current)
        # What has been used since the ranking was made comes last, in the order of what was known before.
        flat, width = self._ranking.ravel(), self._history.width
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

    def _begin(self, visit: Visit) -> None:
        """A new visit; if the one before is still to be learned from, this is the time."""
        if visit.has_news:
            self._learn(list(self._open))
            self._ranked_at = -inf
        visit.begin()
        self._open[visit] = None

    def _learn(self, visits: list[Visit]) -> None:
        for visit in visits:
            del self._open[visit]
        fresh = [visit for visit in visits if visit.has_news]
        banks = len(self._visits)
        if 1 < len(fresh) <= banks - 2 * _INTERLUDE:
            # What was read ahead has begun visits before their turn. In the order of their banks they are learned from
            # together. The first one may itself have been begun ahead of one or two others.
            start = fresh[0].bank - _INTERLUDE
            fresh.sort(key=lambda visit: (visit.bank - start) % banks)
        self._history.learn(fresh)

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
        products: Floats = np.add(self._history.likelihood[:banks], self._absence[:banks], out=out)
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
        self._history.reserve(len(self._visits), len(keys))
        self._reserve()
        place = self._places[key] = (visit, len(keys))
        return place

    def _reserve(self) -> None:
        """Makes the tables as large as what has been learned."""
        banks, shape = len(self._visits), self._history.likelihood.shape
        if self._absence.shape != shape:
            self._absence, self._ranking = (grown(table, shape, inf) for table in (self._absence, self._ranking))
        if 2 * banks != len(self._discounts):
            once = _PHASE_DISCOUNT ** (np.arange(1, banks + 1, dtype=np.float32) / banks)
            self._discounts = np.concatenate([once, once])
