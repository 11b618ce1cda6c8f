"""What will probably be asked for: read when nothing else is to be read, forgotten when it is too late."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from coterie.cache.cause import Cause
from coterie.cache.claims import Entry
from coterie.cache.residency import Residency
from coterie.spec import ExpertKey

_THREADS = 64
"""Threads whose guesses are kept; those of threads that ended before they asked again go first."""

_NEAR = 0.75
"""Share of the room that an announcement protects at most: the rest is there for others, whatever becomes of it."""


class Guesses:
    """Keys that are worth reading ahead; guarded by the cache's lock.

    There are three kinds. What a thread *expects* is for the next thing that it asks for: with that, whatever it is,
    the expectation is over, and what has not been started by then is dropped, because the disk has something better to
    do. What a scan *announces* is an expectation that is as good as certain: it does not wait for the disk to be idle,
    only until all that is demanded is being read. What is *worth having* comes last, and takes nobody's place who has
    been of use.

    Args:
        residency: What is in memory.
    """

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._expected: dict[int, deque[ExpertKey]] = {}
        self._announced: dict[int, deque[ExpertKey]] = {}

    def __bool__(self) -> bool:
        return bool(self._expected or self._announced or self._residency.warm.todo)

    def expect(self, thread: int, keys: Sequence[ExpertKey]) -> None:
        """What a thread will probably ask for next, likeliest first; protected until it asks for something."""
        self._protect(thread, keys)
        absent = self._absent(keys)
        if absent:
            self._expected[thread] = absent

    def announce(self, thread: int, keys: Iterable[ExpertKey]) -> None:
        """What a thread that scans will ask for next, soonest first: as much of it as a scan may have read ahead."""
        residency = self._residency
        if residency.all_resident:
            return
        near: list[ExpertKey] = []
        absent: deque[ExpertKey] = deque()
        ahead, room = 0, _NEAR * residency.room
        for key in keys:
            if not residency.has(key):
                continue
            near.append(key)
            entry = residency.find(key)
            if entry is None:
                absent.append(key)
            ahead += entry is None or entry.announced
            nbytes = residency.slot_nbytes(key)
            room -= nbytes
            if ahead >= residency.scan_depth(nbytes) or room < nbytes:
                break
        if absent:
            self._protect(thread, near)
            self._announced[thread] = absent

    def passed(self, thread: int) -> None:
        """A thread has asked for something: what was expected of it is over."""
        self._residency.expected.pop(thread, None)
        self._expected.pop(thread, None)
        self._announced.pop(thread, None)

    @property
    def announced(self) -> bool:
        """Whether something that was announced is still to be read."""
        return bool(self._announced)

    def take_announced(self) -> Entry | None:
        """The next announced one to read, with a slot; None if there is none, or no room that a scan may take yet."""
        residency = self._residency
        for thread in tuple(self._announced):
            keys = self._announced.get(thread, deque())  # a lease that is collected meanwhile takes it away
            while keys and residency.find(keys[0]) is not None:
                keys.popleft()
            if not keys:
                self._announced.pop(thread, None)
                continue
            entry = residency.reserve_ahead(keys[0], residency.layout(keys[0]), Cause.ANNOUNCEMENT)
            if entry is not None:
                keys.popleft()
                return entry
        return None

    def take(self) -> Entry | None:
        """The next one to read, with a slot; None if there is none, or no room that a guess may take."""
        for thread in tuple(self._expected):
            keys = self._expected.get(thread, deque())
            entry = self._first(keys)
            if not keys:
                self._expected.pop(thread, None)
            if entry is not None:
                return entry
        return self._first_warm()

    def _first_warm(self) -> Entry | None:
        residency, warm = self._residency, self._residency.warm
        while warm.todo:
            key = warm.todo.popleft()
            if residency.find(key) is not None:
                continue
            entry = residency.reserve_warm(key)
            if entry is not None:
                return entry
            if key not in warm.pinned:
                # What comes after it is worth less, and finds no room either.
                warm.todo.clear()
        return None

    def _protect(self, thread: int, keys: Iterable[ExpertKey]) -> None:
        self.passed(thread)
        self._residency.expected[thread] = frozenset(keys)
        while len(self._residency.expected) > _THREADS:
            self.passed(next(iter(self._residency.expected)))

    def _absent(self, keys: Sequence[ExpertKey]) -> deque[ExpertKey]:
        absent = deque(key for key in keys if self._residency.find(key) is None)
        self._residency.counters.predicted += len(absent)
        return absent

    def _first(self, keys: deque[ExpertKey]) -> Entry | None:
        residency = self._residency
        while keys:
            key = keys.popleft()
            if residency.find(key) is None:
                entry = residency.reserve_ahead(key, residency.layout(key), Cause.PREDICTION)
                if entry is not None:
                    return entry
        return None
