"""How many sequences share a pass: as many as make a token cheapest, by what passes took."""

from __future__ import annotations

import statistics
from typing import Literal

_Way = Literal["all", "half", "one"]

_WAYS: tuple[_Way, ...] = ("all", "half", "one")

_UNTIMED = 4
"""Rounds of all together before anything is compared: the first ones read what none has read yet."""

_BLOCKS = (4, 12)
"""Blocks of each way after which a trial may end, and after which it does."""

_ROUNDS = 2
"""New tokens of every sequence that are computed in one way before the next way's turn."""

_CLEAR = 0.1
"""How much dearer the others' tokens have to be for a trial to end early."""

_WORTH = 0.98
"""Share of the seconds of a token of all together below which another way is taken."""

_HOLDS = (256, 4096)
"""Rounds that a choice holds before it is put to the test again; doubles while it stays the same, up to the second."""


class RowCount:
    """Decides, pass by pass, how many of some sequences share it.

    It compares all together, half of them at a time, and one after the other, in short blocks by turns, each by the
    seconds of a token: whatever sharing saves (weights that are read once) and costs (experts that push each other out
    of memory) is in them. Then the cheapest is kept for a time. Numbers that differ little are judged as one.
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
        if blocks < _BLOCKS[0] or any(len(costs) != blocks for costs in self._costs.values()):
            return
        costs = {way: statistics.median(found) for way, found in self._costs.items()}
        best = min(costs, key=costs.__getitem__)
        others = min(cost for way, cost in costs.items() if way != best)
        if others < (1 + _CLEAR) * costs[best] and blocks < _BLOCKS[1]:
            return
        choice = best if costs[best] < _WORTH * costs["all"] else "all"
        self._hold = min(2 * self._hold, _HOLDS[1]) if choice == self.choice else _HOLDS[0]
        self.choice, self._left = choice, self._hold
