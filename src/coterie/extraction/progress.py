"""How far a long operation is, in bytes and seconds. The library prints nothing; callers are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One report.

    Attributes:
        stage: What is being done now: ``fingerprint``, ``measure``, ``extract``, ``checksums``, ``compare``,
            ``headers``, ``export``.
        done: Bytes done, those of an earlier interrupted run not included.
        total: Bytes in all.
        elapsed_s: Seconds since this stage began.
        received: Bytes that have come over the network for it; None where everything is read from files here.
    """

    stage: str
    done: int
    total: int
    elapsed_s: float
    received: int | None = None

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the speed so far; None until there is one."""
        if self.done == 0 or self.elapsed_s <= 0:
            return None
        return (self.total - self.done) * self.elapsed_s / self.done


ProgressCallback = Callable[[Progress], None]
"""Told about progress, from any thread, one call at a time. An exception raised by it ends the operation."""


class Meter:
    """Adds up the bytes of one stage and tells the caller. Safe to use from several threads.

    Args:
        stage: See :class:`Progress`.
        total: Bytes in all.
        callback: Who is told.
        received: Says how many bytes have come over the network.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        callback: ProgressCallback | None,
        received: Callable[[], int] | None = None,
    ) -> None:
        self._received = received
        self._stage = stage
        self._total = total
        self._callback = callback
        self._done = 0
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self.advance(0)

    @property
    def done(self) -> int:
        """Bytes done."""
        return self._done

    def advance(self, nbytes: int) -> None:
        """Adds bytes that are done."""
        with self._lock:
            self._tell(self._done + nbytes)

    def reach(self, done: int) -> None:
        """Sets the bytes done, where somebody else adds them up."""
        with self._lock:
            self._tell(done)

    def _tell(self, done: int) -> None:
        self._done = done
        if self._callback is not None:
            elapsed = time.monotonic() - self._start
            received = None if self._received is None else self._received()
            self._callback(
                Progress(stage=self._stage, done=done, total=self._total, elapsed_s=elapsed, received=received)
            )
