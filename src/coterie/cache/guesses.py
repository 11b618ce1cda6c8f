"""What will probably be asked for: read when nothing else is to be read, forgotten when it is too late."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from coterie.cache.claims import Entry
from coterie.cache.residency import Residency
from coterie.spec import ExpertKey

_THREADS = 64
"""Threads whose guesses are kept: those of threads that ended before they asked again are not asked for."""


class Guesses:
    """Keys that are worth reading ahead; guarded by the cache's lock.

    There are two kinds. *Hints* are for some time to come, until other ones supersede them. What a thread *expects* is
    for the next thing that it asks for: with that, whatever it is, the expectation is over, and what has not been
    started by then is dropped, because the disk has something better to do.

    Args:
        residency: What is in memory.
    """

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._hints: deque[ExpertKey] = deque()
        self._expected: dict[int, deque[ExpertKey]] = {}

    def __bool__(self) -> bool:
        return bool(self._hints or self._expected)

    def hint(self, keys: Sequence[ExpertKey]) -> None:
        """Supersedes earlier hints."""
        for key in keys:
            self._residency.predict(key)
        self._hints = self._absent(keys)

    def expect(self, thread: int, keys: Sequence[ExpertKey]) -> None:
        """What a thread will probably ask for next, likeliest first; protected until it asks for something."""
        self._residency.expected[thread] = frozenset(keys)
        absent = self._absent(keys)
        if absent:
            self._expected[thread] = absent
        while len(self._residency.expected) > _THREADS:
            self.passed(next(iter(self._residency.expected)))

    def passed(self, thread: int) -> None:
        """A thread has asked for something: what was expected of it is over."""
        self._residency.expected.pop(thread, None)
        self._expected.pop(thread, None)

    def take(self) -> Entry | None:
        """The next one to read, with a slot; None if there is none, or no room that a guess may take."""
        for thread in tuple(self._expected):
            entry = self._first(self._expected[thread])
            if not self._expected[thread]:
                del self._expected[thread]
            if entry is not None:
                return entry
        return self._first(self._hints)

    def _absent(self, keys: Sequence[ExpertKey]) -> deque[ExpertKey]:
        absent = deque(key for key in keys if self._residency.find(key) is None)
        self._residency.counters.prefetch_hinted += len(absent)
        return absent

    def _first(self, keys: deque[ExpertKey]) -> Entry | None:
        residency = self._residency
        while keys:
            key = keys.popleft()
            if residency.find(key) is None:
                entry = residency.reserve_hinted(key, residency.layout(key))
                if entry is not None:
                    return entry
        return None
