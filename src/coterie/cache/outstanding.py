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
        guessed_s: In which none was, but one for a guess.
        wait_s: That consumers waited, added up over threads.
    """

    demanded_s: float
    guessed_s: float
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
        self._guessed_s = 0.0
        self.demanded: set[Entry] = set()
        self.guessed: set[Entry] = set()

    def begin(self, entry: Entry) -> None:
        """A read begins; it is for a guess if nobody has asked for the entry."""
        self._advance()
        (self.guessed if entry.unclaimed else self.demanded).add(entry)

    def demand(self, entry: Entry) -> None:
        """Somebody asked for an entry that may be under way for a guess: from now on it is waited for."""
        if entry in self.guessed:
            self._advance()
            self.guessed.discard(entry)
            self.demanded.add(entry)

    def end(self, entry: Entry) -> None:
        """A read has ended."""
        self._advance()
        self.guessed.discard(entry)
        self.demanded.discard(entry)

    def seconds(self) -> tuple[float, float]:
        """Time with a demanded read under way, and time with guesses alone, until now."""
        self._advance()
        return self._demanded_s, self._guessed_s

    def _advance(self) -> None:
        now = self._clock()
        if self.demanded:
            self._demanded_s += now - self._since
        elif self.guessed:
            self._guessed_s += now - self._since
        self._since = now
