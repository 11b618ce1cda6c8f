"""Whether looking ahead pays, by what was measured while the model ran."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from coterie.cache import ReadTimes
from coterie.spec import Prefetch

Verdict = Literal["unknown", "pays", "complete", "wrong", "saturated", "idle"]
"""What looking ahead is worth: ``pays``; or why not: the guesses are mostly ``wrong``, the disk is ``saturated`` with
what was asked for, there is so little to wait for that the guesses cost more (``idle``), every expert is in memory
(``complete``)."""

_MEMORY = 0.95
"""What one step's figures count for after the next step: the last twenty or so matter."""

_FIRST = 8
"""Steps before the first verdict."""

_SAMPLE = 8
"""While it does not pay, one step in so many is looked at, to see whether it would."""

_RIGHT = (0.4, 0.5)
"""Share of right guesses below which it stops, and from which it starts: a wrong one costs the disk what a right one
saves the model."""

_SATURATED = (0.97, 0.93)
"""Share of the time with demanded reads under way, had there been no guesses, above which it stops, and below which it
starts: only the rest is there for guesses."""

_WORTH = (1.0, 2.0)
"""Waiting time that right guesses could save, in terms of what making guesses costs: likewise."""


@dataclass(slots=True)
class _Sums:
    """Figures of the last steps, older ones counting less."""

    steps: float = 0.0
    seconds: float = 0.0
    demanded_s: float = 0.0
    guessed_s: float = 0.0
    wait_s: float = 0.0
    looks: float = 0.0
    cost_s: float = 0.0
    guesses: float = 0.0
    right: float = 0.0

    def fade(self, *names: str) -> None:
        for name in names:
            setattr(self, name, getattr(self, name) * _MEMORY)


class Governor:
    """Decides, step by step of decoding, whether guesses are read, only compared with what came, or not made at all.

    What the disk would do without guesses is estimated as what it does for demand, plus what it did for right guesses:
    these reads would have been demanded, and would have made the steps that much longer.

    Args:
        mode: ``"off"`` needs no governor.
        read_times: The cache's.
        clock: Gives seconds.
    """

    def __init__(self, mode: Prefetch, read_times: Callable[[], ReadTimes], clock: Callable[[], float]) -> None:
        self.verdict: Verdict = "pays" if mode == "on" else "unknown"
        self._mode = mode
        self._read_times = read_times
        self._clock = clock
        self._lock = threading.Lock()
        self._sums = _Sums()
        self._steps = 0
        self._layers = 1
        self._last: tuple[float, ReadTimes] | None = None

    @property
    def reads(self) -> bool:
        """Whether guesses are to be read now."""
        return self.verdict == "pays"

    def begin_step(self) -> bool:
        """A decode step begins; returns whether guesses are to be made in it."""
        if self._mode == "on":
            return True
        with self._lock:
            self._steps += 1
            self._account()
            if self._steps > _FIRST:
                self.verdict = self._judge()
            return self.reads or self._steps <= _FIRST or self._steps % _SAMPLE == 0

    def interrupt(self) -> None:
        """Something else than decode steps follows: its time is not theirs."""
        self._last = None

    def looked(self, seconds: float) -> None:
        """A guess was made for one layer, which took so long."""
        self._sums.looks += 1
        self._sums.cost_s += seconds

    def compare(self, guesses: int, right: int) -> None:
        """So many experts that were not in memory were guessed, and so many of them were then asked for."""
        self._sums.guesses += guesses
        self._sums.right += right

    def _account(self) -> None:
        now, times = self._clock(), self._read_times()
        if self._last is not None:
            before, old = self._last
            sums = self._sums
            sums.fade("steps", "seconds", "demanded_s", "guessed_s", "wait_s")
            sums.steps += 1
            sums.seconds += now - before
            sums.demanded_s += times.demanded_s - old.demanded_s
            sums.guessed_s += times.guessed_s - old.guessed_s
            sums.wait_s += times.wait_s - old.wait_s
            if sums.looks > 1000:
                sums.fade("looks", "cost_s")
            if sums.guesses > 200:
                sums.fade("guesses", "right")
        self._last = now, times

    def _judge(self) -> Verdict:
        sums, on = self._sums, self.reads
        if not sums.steps or not sums.looks:
            return "unknown"
        share = sums.right / sums.guesses if sums.guesses else 0.0
        saved_s = share * sums.guessed_s
        # What there is to wait for in a step, of which the share that is guessed right can be saved.
        worth_s = share * (sums.wait_s + saved_s) / sums.steps
        if worth_s < _WORTH[not on] * self._cost_s():
            return "idle"
        if share < _RIGHT[not on]:
            return "wrong"
        if (sums.demanded_s + saved_s) / (sums.seconds + saved_s) > _SATURATED[not on]:
            return "saturated"
        return "pays"

    def _cost_s(self) -> float:
        """What guesses for all layers of a step take."""
        return self._sums.cost_s / self._sums.looks * self._layers

    def layers(self, count: int) -> None:
        """For how many layers of a step guesses can be made."""
        self._layers = max(1, count)
