"""A limit on how many bytes arrive in a second."""

from __future__ import annotations

import threading
import time

from coterie.records.remote.attempts import pause
from coterie.spec import parse_rate

_BURST_S = 0.25


class RateLimit:
    """Holds back whoever receives bytes, so that all together stay below a rate. Safe to use from several threads.

    A reader that is held back reads no further, so that the sender has to wait, too.

    Args:
        nbytes_per_s: Bytes in a second.
    """

    def __init__(self, nbytes_per_s: int) -> None:
        self._rate = nbytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, max_rate: str | int | None) -> RateLimit | None:
        """The limit that a user asks for, such as ``"20MB/s"``; None for none.

        Raises:
            UsageError: If it is no rate.
        """
        return None if max_rate is None else cls(parse_rate(max_rate))

    def take(self, nbytes: int, stopped: threading.Event) -> None:
        """Counts bytes that have arrived, and waits until that many may have.

        Args:
            nbytes: How many.
            stopped: Set when nobody wants them any more, which ends the wait.
        """
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BURST_S) + nbytes / self._rate
            wait_s = self._free_at - now
        if wait_s > 0:
            pause(wait_s, stopped)
