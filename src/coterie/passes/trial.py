"""Whether looking ahead pays, by what steps take with it and without."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from typing import Literal

from coterie.cache import ReadTimes
from coterie.passes.current import carried
from coterie.spec import Prefetch

Verdict = Literal["unknown", "pays", "complete", "slower", "idle"]
"""What looking ahead is worth: ``pays``; or why it is not done: steps were not shorter with it (``slower``), there was
too little to wait for (``idle``), every expert is in memory (``complete``). ``unknown`` until it was tried once."""

_BLOCK = 4
"""Steps of a trial that follow each other with predictions, or without."""

_PAIRS = (4, 12)
"""Pairs of blocks, one with and one without predictions, after which a trial may end, and after which it does."""

_SOON = (2, 0.9)
"""Pairs of blocks after which it ends if steps with predictions take less than this share of the time of others: to be
wrong about that costs little, and every second step of a trial is a longer one."""

_CLEAR = 0.07
"""How much shorter or longer steps have to be for a trial to end early."""

_WORTH = 0.97
"""Share of the time of steps without predictions below which steps with them are shorter."""

_WATCHED = 8
"""Steps without predictions that show how much there is to wait for."""

_LEAST_WAIT = 0.03
"""Share of the time spent waiting below which nothing is tried."""

_HOLDS = (256, 4096)
"""Steps that a verdict holds before it is put to the test again; doubles while it stays the same, up to the second."""


class _Last:
    """The step that a thread began last.

    Attributes:
        number: Of all steps and interruptions of all threads; None after an interruption.
        began: When.
        waited: What all had waited by then.
        predicts: Whether predictions are made in it.
    """

    number: int | None = None
    began: float = 0.0
    waited: float = 0.0
    predicts: bool = False


class PrefetchTrial:
    """Decides, step by step of decoding, whether predictions are made and read.

    Steps with predictions and without follow each other in short blocks, their order alternating, and the medians of
    their times are compared: whatever predictions cost (asking routers, waking threads, memory bandwidth, a slower
    disk) and whatever they save is in them. Then the better way is kept for a time.

    Args:
        mode: ``"on"`` or ``"auto"``; ``"off"`` needs none.
        read_times: The cache's.
        clock: Gives seconds.
    """

    def __init__(self, mode: Prefetch, read_times: Callable[[], ReadTimes], clock: Callable[[], float]) -> None:
        self.verdict: Verdict = "pays" if mode == "on" else "unknown"
        self.reads = mode == "on"
        self._mode = mode
        self._read_times = read_times
        self._clock = clock
        self._lock = threading.Lock()
        self._steps = 0
        # Seconds of the steps that are being compared: without predictions, with them.
        self._steps_s: tuple[list[float], list[float]] = ([], [])
        self._waited_s = 0.0
        self._trying = False
        self._hold = _HOLDS[0]
        self._left = 0

    def begin_step(self) -> bool:
        """A decode step begins; returns whether predictions are made in it."""
        if self._mode == "on":
            return True
        with self._lock:
            last = carried(self, _Last)
            self._account(last)
            self.reads = last.predicts = self._decide()
            return self.reads

    def interrupt(self) -> None:
        """Something else than decode steps follows in this thread: its time is not theirs."""
        with self._lock:
            self._steps += 1
            carried(self, _Last).number = None

    def _account(self, last: _Last) -> None:
        """Notes what this thread's last step took, unless another thread began something meanwhile."""
        now, waited = self._clock(), self._read_times().wait_s
        if last.number is not None and last.number == self._steps:
            self._steps_s[last.predicts].append(now - last.began)
            if not last.predicts:
                self._waited_s += waited - last.waited
        self._steps += 1
        last.number, last.began, last.waited = self._steps, now, waited

    def _decide(self) -> bool:
        """Whether the next step has predictions."""
        if self._left:
            self._left -= 1
            self._forget()
            return self.verdict == "pays"
        if not self._trying:
            without_s = self._steps_s[False]
            if len(without_s) < _WATCHED:
                return False
            if self._waited_s < _LEAST_WAIT * sum(without_s):
                return self._settle("idle")
            self._trying = True
            self._forget()
        return self._try()

    def _try(self) -> bool:
        pairs, step = divmod(min(map(len, self._steps_s)), _BLOCK)
        without_s, with_s = self._steps_s
        if step == 0 and len(without_s) == len(with_s) and pairs >= _SOON[0]:
            ratio = statistics.median(with_s) / statistics.median(without_s)
            clear = pairs >= _PAIRS[0] and abs(1 - ratio) > _CLEAR
            if clear or ratio < _SOON[1] or pairs >= _PAIRS[1]:
                return self._settle("pays" if ratio < _WORTH else "slower")
        # Pairs begin by turns with one kind and with the other.
        first = pairs % 2 == 0
        done = len(self._steps_s[first]) - pairs * _BLOCK
        return first if done < _BLOCK else not first

    def _settle(self, verdict: Verdict) -> bool:
        self._hold = min(2 * self._hold, _HOLDS[1]) if verdict == self.verdict else _HOLDS[0]
        self.verdict = verdict
        self._left = self._hold
        self._trying = False
        self._forget()
        return verdict == "pays"

    def _forget(self) -> None:
        self._steps_s = ([], [])
        self._waited_s = 0.0
