"""Requests that wait for their turn: how many, in which order, and for how long at most."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from coterie.errors import QueueFullError, QueueTimeoutError
from coterie.generation.jobs import Job

_LONGEST_RETRY_S = 600
_NEWEST = 0.2
"""Weight of the newest request in what is expected of the next."""


class WaitingLine:
    """A line of requests. All of it but its length is for those who hold the lock.

    Args:
        lock: Guards it, and is held while a request is given up.
        most: Requests that may wait, beside those for which there are places.
        longest_s: Seconds after which a request that still waits is given up.
        give_up: Ends a request that is in the line no more, with the reason.
        why: Says what a request waits for, if more is known than that others are before it.
    """

    def __init__(
        self,
        lock: threading.RLock,
        *,
        most: int,
        longest_s: float,
        give_up: Callable[[Job, BaseException], None],
        why: Callable[[Job], str],
    ) -> None:
        self._jobs: list[Job] = []
        self._most = most
        self._longest_s = longest_s
        self._give_up = give_up
        self._why = why
        self._usual_s = 1.0
        self._closed = False
        self._changed = threading.Condition(lock)
        self._thread = threading.Thread(target=self._watch, name="coterie-queue", daemon=True)

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs))

    @property
    def ready(self) -> Job | None:
        """The first whose prompt is prepared."""
        return next((job for job in self._jobs if job.prompt is not None), None)

    @property
    def retry_after(self) -> int:
        """Seconds until there may be room, by how long requests took lately."""
        return max(1, min(_LONGEST_RETRY_S, round(self._usual_s)))

    def start(self) -> None:
        """From now on, who waits for too long is given up."""
        self._thread.start()

    def add(self, job: Job, places: int) -> None:
        """Takes a request on.

        Args:
            job: The request.
            places: How many could begin at once.

        Raises:
            QueueFullError: If there is no room.
        """
        if len(self._jobs) >= self._most + places:
            raise QueueFullError(
                f"{len(self._jobs)} requests are waiting already.",
                advice="Ask again later, or allow more to wait.",
                retry_after=self.retry_after,
            )
        self._jobs.append(job)
        self._changed.notify()

    def remove(self, job: Job) -> bool:
        """Has a request leave; returns whether it was there."""
        if job not in self._jobs:
            return False
        self._jobs.remove(job)
        return True

    def clear(self) -> list[Job]:
        """Has all leave; returns them."""
        jobs, self._jobs = self._jobs, []
        return jobs

    def served(self, seconds: float) -> None:
        """A request was answered in so many seconds."""
        self._usual_s += _NEWEST * (seconds - self._usual_s)

    def close(self) -> None:
        """Ends the thread; :meth:`join` waits for that, without the lock."""
        self._closed = True
        self._changed.notify_all()

    def join(self) -> None:
        """Waits for the thread's end."""
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                self._changed.wait(self._expire())

    def _expire(self) -> float | None:
        """Gives up who has waited for too long; returns the seconds until the next one has."""
        now = time.monotonic()
        for job in [one for one in self._jobs if now - one.ticket.submitted >= self._longest_s]:
            self._jobs.remove(job)
            message = f"The request waited for {self._longest_s:g} s without its turn coming. {self._why(job)}"
            self._give_up(job, QueueTimeoutError(message.strip(), retry_after=self.retry_after))
        first = min((job.ticket.submitted for job in self._jobs), default=None)
        return None if first is None else first + self._longest_s - now
