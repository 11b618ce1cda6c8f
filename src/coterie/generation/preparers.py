"""Threads that make prompts ready beside the one that owns the model: who is next, and how much is made at once.

Making a prompt ready takes from a millisecond to minutes, and memory by its length. Nobody is to wait for that but who
asked: short texts pass long ones, and there is always a thread for them.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

SHORT_NBYTES = 16 << 10
"""What is no longer is made ready in hundredths of a second. One thread does nothing else."""

UNKNOWN_NBYTES = SHORT_NBYTES + 1
"""What is taken for the size of what nobody knows the size of."""

_BESIDE_NBYTES = 256 << 10
"""What is made ready beside the longest, at most, together: tokens take a hundred times the memory of their text."""

_MOST_THREADS = 4


@dataclass(order=True, slots=True)
class Work:
    """Something to be done.

    Attributes:
        due: What comes first has the least.
        number: Likewise, among equals.
        nbytes: How long it is.
        decodes: Whether it decodes pictures or sounds.
        run: Does it. It is told whether it is to be done: not if the threads end before.
    """

    due: int
    number: int
    nbytes: int = field(compare=False)
    decodes: bool = field(compare=False)
    run: Callable[[bool], None] = field(compare=False)


class Preparers:
    """A few threads that begin when there is something to do.

    What is handed in is ordered by its size, counted from what was begun when it came. So short works pass a long one,
    but not for ever. Beside the longest that is being done, others add up to a quarter of a MiB; pictures and sounds
    are decoded for one work at a time.
    """

    def __init__(self) -> None:
        self.threads = max(2, min(_MOST_THREADS, os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="coterie-prepare")
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: list[Work] = []
        self._going: list[Work] = []
        self._begun = 0
        self._closed = False

    def __len__(self) -> int:
        """Works that are not being done yet."""
        return len(self._waiting)

    def submit(self, run: Callable[[bool], None], nbytes: int, *, decodes: bool = False) -> Work:
        """Has something done.

        Args:
            run: Does it, in one of the threads; raises nothing. It is told whether it is to be done.
            nbytes: How long it is.
            decodes: Whether it decodes pictures or sounds.
        """
        with self._lock:
            work = Work(self._begun + nbytes, next(self._numbers), nbytes, decodes, run)
            closed = self._closed
            if not closed:
                self._waiting.append(work)
                try:
                    self._pool.submit(self._work)
                except BaseException:  # there may be no room for another thread
                    self._waiting.remove(work)
                    raise
        if closed:
            run(False)
        return work

    def withdraw(self, work: Work) -> bool:
        """Nobody wants it any more: it is not begun, and not kept. Returns whether it was still waiting."""
        with self._lock:
            waits = work in self._waiting
            if waits:
                self._waiting.remove(work)
            return waits

    def close(self) -> None:
        """Ends the threads once they have done what they have begun; what waits is told that it is not done."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = sorted(self._waiting), []
        for work in waiting:
            work.run(False)
        self._pool.shutdown(cancel_futures=True)

    def _work(self) -> None:
        """Does what may be done now; what may not is done by whoever ends what is in its way."""
        while (work := self._next()) is not None:
            try:
                work.run(True)
            finally:
                with self._lock:
                    self._going.remove(work)
                    if self._waiting and not self._closed:
                        with suppress(RuntimeError):  # without another thread, this one does all of it
                            self._pool.submit(self._work)  # this may have been in the way of several
                del work  # a thread that waits keeps nothing

    def _next(self) -> Work | None:
        with self._lock:
            work = min(filter(self._may_begin, self._waiting), default=None)
            if work is not None:
                self._waiting.remove(work)
                self._going.append(work)
                self._begun = max(self._begun, work.due)
            return work

    def _may_begin(self, work: Work) -> bool:
        going = [one.nbytes for one in self._going]
        if work.nbytes > SHORT_NBYTES and sum(one > SHORT_NBYTES for one in going) >= self.threads - 1:
            return False
        if work.decodes and any(one.decodes for one in self._going):
            return False
        together = [*going, work.nbytes]
        return sum(together) - max(together) <= _BESIDE_NBYTES
