"""The reads that are under way, and for how long there were any."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from coterie.cache.claims import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTimes:
    """Seconds since the cache was made.

    Attributes:
        demanded_s: In which a read was under way that somebody had asked for.
        ahead_s: In which none was, but one ahead of any request.
        wait_s: That consumers waited, added up over threads.
    """

    demanded_s: float
    ahead_s: float
    wait_s: float


class Outstanding:
    """Keeps apart what is read because it was asked for, and what is read because it might be; guarded by the lock.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = clock()
        self._demanded_s = 0.0
        self._ahead_s = 0.0
        self.demanded: set[Entry] = set()
        self.ahead: set[Entry] = set()

    def begin(self, entry: Entry) -> None:
        """A read begins; it is ahead of any request if nobody has asked for the entry."""
        self._advance()
        (self.ahead if entry.unclaimed else self.demanded).add(entry)

    def demand(self, entry: Entry) -> None:
        """Somebody asked for an entry that may be under way ahead of that: from now on it is waited for."""
        if entry in self.ahead:
            self._advance()
            self.ahead.discard(entry)
            self.demanded.add(entry)

    def end(self, entry: Entry) -> None:
        """A read has ended."""
        self._advance()
        self.ahead.discard(entry)
        self.demanded.discard(entry)

    def seconds(self) -> tuple[float, float]:
        """Time with a demanded read under way, and time with none but those ahead of any request, until now."""
        self._advance()
        return self._demanded_s, self._ahead_s

    def _advance(self) -> None:
        now = self._clock()
        if self.demanded:
            self._demanded_s += now - self._since
        elif self.ahead:
            self._ahead_s += now - self._since
        self._since = now
