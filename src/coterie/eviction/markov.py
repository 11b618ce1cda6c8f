"""Evicts what is least likely to be used soon, as learned from how experts were used and what followed what."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from math import inf
from typing import Generic

import numpy as np
import numpy.typing as npt

from coterie.eviction.protocol import K
from coterie.eviction.selection import take_until
from coterie.eviction.transitions import Bank

_PHASE_DISCOUNT = 0.6
"""How much less a use one forward pass later is worth."""
_SINGLE_STEPS = 8
"""Candidates searched for one by one before the rest is sorted: most often the first one may leave."""
_INTERLUDE = 2
"""Moves between banks after which a bank's visit still counts as the same: a prefetch for another bank is no visit."""

Scores = npt.NDArray[np.float32]


class MarkovPolicy(Generic[K]):
    """Predicts the next use of every expert, and evicts the one whose next use is the least likely and the latest.

    A *bank* holds the keys that differ in their last member only (other keys are of one bank), and a *visit* is the
    set of its keys that one forward pass uses. From the visits each bank learns how likely each of its experts is to
    be used at the next one (:class:`~coterie.eviction.transitions.Bank`): from its use in the past, on three
    time scales, and from what was used at the visits that followed the present members. What is learned about a record
    outlives its eviction; the policy knows every key it was ever told about, of which a model has as many as experts.

    Banks are visited in turn, so the experts of the present one are not needed before a whole pass is over, and those
    of the following one at once. The probability is therefore multiplied by 0.6 to the power of the share of a pass
    that lies between (in (0, 1]; banks in the order in which they were first heard of). The lowest product leaves
    first; ties by the order of first appearance.

    A visit ends when the bank is come back to after others; with three banks or fewer, also when one of its members
    is used again. It is learned from when the next bank's turn comes: learning from each use at once costs twice the
    time and wins next to no hits. Cold insertions are no uses; they leave before all others, the latest one first,
    until they are used.
    """

    def __init__(self) -> None:
        self._banks: list[Bank] = []
        self._bank_of: dict[Hashable, Bank] = {}
        self._places: dict[K, tuple[Bank, int]] = {}
        self._keys: list[list[K]] = []
        self._sizes: dict[K, int] = {}
        self._cold: dict[K, None] = {}
        self._current: Bank | None = None
        self._moves = 0
        # By bank and expert; infinite for what cannot leave, because it is not resident or among the cold.
        self._scores: Scores = np.full((0, 0), inf, dtype=np.float32)
        self._candidates = self._scores.copy()
        # The discounts of a pass twice over: every bank's view of them is a slice.
        self._discounts: Scores = np.zeros(0, dtype=np.float32)

    def insert(self, key: K, nbytes: int, *, cold: bool = False) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        bank, index = self._places.get(key) or self._meet(key)
        self._sizes[key] = nbytes
        if cold:
            self._cold[key] = None
            return
        self._admit(bank, index)
        self._use(bank, index)

    def hit(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        bank, index = self._places[key]
        if key in self._cold:
            del self._cold[key]
            self._admit(bank, index)
        self._use(bank, index)

    def remove(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        del self._sizes[key]
        if key in self._cold:
            del self._cold[key]
            return
        bank, index = self._places[key]
        bank.absence[index] = inf
        self._scores[bank.number, index] = inf

    def victims(self, needed_bytes: int, is_evictable: Callable[[K], bool]) -> list[K]:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        return take_until(self._order(), self._sizes, needed_bytes, is_evictable)

    def _order(self) -> Iterator[K]:
        yield from reversed(self._cold)
        if self._current is None:
            return
        count = len(self._banks)
        first = count - 1 - self._current.number
        discounts = self._discounts[first : first + count, None]
        scores = np.multiply(self._scores[:count], discounts, out=self._candidates[:count])
        flat, width = scores.ravel(), scores.shape[1]
        for _ in range(_SINGLE_STEPS):
            place = int(flat.argmin())
            if flat[place] == inf:
                return
            yield self._keys[place // width][place % width]
            flat[place] = inf
        for place in flat.argsort(kind="stable").tolist():
            if flat[place] == inf:
                return
            yield self._keys[place // width][place % width]

    def _admit(self, bank: Bank, index: int) -> None:
        bank.absence[index] = 0
        self._scores[bank.number, index] = bank.likelihood[index]

    def _use(self, bank: Bank, index: int) -> None:
        current = self._current
        if bank is not current:
            if current is not None:
                self._publish(current)
                current.left_at = self._moves
            self._moves += 1
            self._current = bank
            if self._moves - bank.left_at > _INTERLUDE or not self._can_resume:
                bank.begin_visit()
        elif index in bank.members and not self._can_resume:
            self._publish(bank)
            bank.begin_visit()
        if index not in bank.members:
            bank.use(index)

    @property
    def _can_resume(self) -> bool:
        """Whether there are enough banks to tell a short interlude from a pass."""
        return len(self._banks) > _INTERLUDE + 1

    def _publish(self, bank: Bank) -> None:
        """Brings the scores of a bank up to date with its visit."""
        if bank.learn():
            np.add(bank.likelihood, bank.absence, out=self._scores[bank.number, : bank.width])

    def _meet(self, key: K) -> tuple[Bank, int]:
        """Gives a key its place: the bank's next one."""
        name = key[:-1] if isinstance(key, tuple) else ()
        bank = self._bank_of.get(name)
        if bank is None:
            bank = self._bank_of[name] = Bank(len(self._banks))
            self._banks.append(bank)
            self._keys.append([])
        index = len(self._keys[bank.number])
        self._keys[bank.number].append(key)
        bank.reserve(index + 1)
        self._reserve(len(self._banks), bank.width)
        self._places[key] = (bank, index)
        return bank, index

    def _reserve(self, rows: int, columns: int) -> None:
        """Makes the table of scores large enough."""
        had_rows, had_columns = self._scores.shape
        if rows > had_rows or columns > had_columns:
            # A model's banks are all met within its first pass; growing by doubling keeps that cheap.
            grown_rows = had_rows if rows <= had_rows else max(rows, 2 * had_rows)
            grown = np.full((grown_rows, max(columns, had_columns)), inf, dtype=np.float32)
            grown[:had_rows, :had_columns] = self._scores
            self._scores = grown
            self._candidates = grown.copy()
        if 2 * rows != len(self._discounts):
            once = _PHASE_DISCOUNT ** (np.arange(1, rows + 1, dtype=np.float32) / rows)
            self._discounts = np.concatenate([once, once])
