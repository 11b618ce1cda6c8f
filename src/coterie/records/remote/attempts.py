"""Trying again: how often, how long, and when to give up."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace

from coterie.records.remote.failures import Failure, RequestFailure, failure_of

_log = logging.getLogger("coterie.hub")
_PROGRESS_BYTES = 64 * 2**10
_TOLD_S = 4.0
"""Waits of this length are told; shorter ones pass before anyone wonders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How much is borne before a request fails for good.

    Attributes:
        tries: Tries without progress.
        first_s: Seconds before the second try; doubled for each further one.
        longest_s: Longest wait that is not asked for by the server.
        total_s: Seconds waited in all without progress. The Hub counts requests in windows of five minutes.
    """

    tries: int = 6
    first_s: float = 0.5
    longest_s: float = 8.0
    total_s: float = 360.0


PATIENCE = Patience()


class Attempts:
    """The tries of one request, or of one file, which goes on where it stopped.

    Args:
        what: What is asked for, to be named where the user is told of a wait.
        tries: How often it is tried without progress; None for as often as patience says.
        stopped: Set when nobody wants it any more.

    Attributes:
        stopped: The same.
    """

    def __init__(self, what: str, *, tries: int | None = None, stopped: threading.Event | None = None) -> None:
        self._what = what
        self.stopped = stopped or threading.Event()
        self._patience = PATIENCE if tries is None else replace(PATIENCE, tries=tries)
        self._tries = 0
        self._waited_s = 0.0
        self._reached = 0

    def failed(self, error: Exception, reached: int = 0) -> None:
        """Waits until it is time to try again.

        Args:
            error: What the last try ended in, one of :data:`~coterie.records.remote.failures.PROBLEMS`.
            reached: Bytes that are there by now. Getting further gives all tries back.

        Raises:
            RequestFailure: If another try is no use, patience is at an end, or nobody wants it any more.
        """
        failure = failure_of(error)
        if reached >= self._reached + _PROGRESS_BYTES:
            self._tries, self._waited_s, self._reached = 0, 0.0, reached
        self._tries += 1
        wait_s = self._wait(failure)
        if (
            not failure.passing
            or self.stopped.is_set()
            or self._tries >= self._patience.tries
            or wait_s > self._patience.total_s - self._waited_s
        ):
            raise RequestFailure(failure, tries=self._tries) from error
        if wait_s >= _TOLD_S:
            _log.warning("%s: %s. Trying again in %.0f s.", self._what, failure.cause, wait_s)
        self._waited_s += wait_s
        pause(wait_s, self.stopped)

    def _wait(self, failure: Failure) -> float:
        if failure.retry_after is not None:
            return failure.retry_after
        return float(min(self._patience.longest_s, self._patience.first_s * 2 ** (self._tries - 1)))


def pause(seconds: float, stopped: threading.Event) -> None:
    """Waits, but not longer than anyone wants what it is for."""
    stopped.wait(seconds)
