"""How many sequences share a pass: as many as make a token cheapest, by what passes took."""

from __future__ import annotations

import statistics
from typing import Literal

_Way = Literal["all", "half", "one"]

_WAYS: tuple[_Way, ...] = ("all", "half", "one")

_UNTIMED = 4
"""Rounds of all together before anything is compared: the first ones read what none has read yet."""

_MOST_BLOCKS = 12
"""Blocks of each way after which a trial ends."""

_ROUNDS = 2
"""New tokens of every sequence that are computed in one way before the next way's turn."""

_CLEAR = {3: 0.3, 4: 0.15, 6: 0.1}
"""After so many blocks of each way, how much dearer than the cheapest one drops out: the dearest ones soon."""

_WORTH = 0.98
"""Share of the seconds of a token of all together below which another way is taken."""

_HOLDS = (256, 4096)
"""Rounds that a choice holds before it is put to the test again; doubles while it stays the same, up to the second."""


class RowCount:
    """Decides, pass by pass, how many of some sequences share it.

    It compares all together, half of them at a time, and one after the other, in short blocks by turns, each by the
    seconds of a token: whatever sharing saves (weights that are read once) and costs (experts that push each other out
    of memory) is in them. What is clearly dearer drops out. The cheapest is kept for a time. Numbers that differ little
    are judged as one.
    """

    def __init__(self) -> None:
        self._trials: dict[int, _Trial] = {}
        self._last: _Trial | None = None

    def most(self, sequences: int) -> int:
        """How many sequences share the next pass.

        Args:
            sequences: Those that could, at least two.
        """
        kind = (sequences - 1).bit_length()
        trial = self._trials.setdefault(kind, _Trial())
        if trial is not self._last and self._last is not None:
            self._last.interrupt()
        self._last = trial
        return trial.most(sequences)

    def took(self, rows: int, seconds: float) -> None:
        """A pass is over that :meth:`most` was asked for.

        Args:
            rows: Sequences that shared it.
            seconds: What it took.
        """
        if self._last is not None:
            self._last.took(rows, seconds)

    def interrupt(self) -> None:
        """What follows is no such pass, or was no fair one."""
        if self._last is not None:
            self._last.interrupt()


def _rows(way: _Way, sequences: int) -> int:
    return {"all": sequences, "half": -(-sequences // 2), "one": 1}[way]


class _Trial:
    """The comparison for about so many sequences."""

    def __init__(self) -> None:
        self.choice: _Way = "all"
        self._hold = _HOLDS[0]
        self._left = _UNTIMED
        # Seconds of a token in each block of a way.
        self._costs: dict[_Way, list[float]] = {}
        self._way: _Way = "all"
        self._sequences = 0
        # Of the block that is going on.
        self._tokens = 0
        self._seconds = 0.0

    def most(self, sequences: int) -> int:
        if sequences != self._sequences:
            self.interrupt()
            self._sequences = sequences
        return _rows(self._way, sequences)

    def interrupt(self) -> None:
        self._tokens, self._seconds = 0, 0.0

    def took(self, rows: int, seconds: float) -> None:
        self._tokens += rows
        self._seconds += seconds
        rounds = 1 if self._left else _ROUNDS
        if self._tokens < rounds * self._sequences:
            return
        cost = self._seconds / self._tokens
        self.interrupt()
        if self._left:
            self._left -= 1
            if not self._left:
                self._costs = {way: [] for way in _WAYS if way != "half" or self._sequences > 2}
        else:
            self._costs.setdefault(self._way, []).append(cost)
            self._decide()
        self._way = self._next()

    def _next(self) -> _Way:
        """The way of the next block: whichever had the fewest; their order turns round from one to the next."""
        if self._left:
            return self.choice
        done = {way: len(costs) for way, costs in self._costs.items()}
        fewest = min(done.values())
        ways = [way for way in _WAYS if done.get(way) == fewest]
        return ways[0] if fewest % 2 == 0 else ways[-1]

    def _decide(self) -> None:
        blocks = min(map(len, self._costs.values()))
        if any(len(costs) != blocks for costs in self._costs.values()):
            return
        clear = next((share for least, share in reversed(_CLEAR.items()) if blocks >= least), None)
        if clear is None:
            return
        costs = {way: statistics.median(found) for way, found in self._costs.items()}
        cheapest = min(costs.values())
        self._costs = {way: self._costs[way] for way, cost in costs.items() if cost <= (1 + clear) * cheapest}
        if len(self._costs) > 1 and blocks < _MOST_BLOCKS:
            return
        best = min(self._costs, key=costs.__getitem__)
        choice = "all" if "all" in self._costs and costs[best] >= _WORTH * costs["all"] else best
        self._hold = min(2 * self._hold, _HOLDS[1]) if choice == self.choice else _HOLDS[0]
        self.choice, self._left = choice, self._hold
