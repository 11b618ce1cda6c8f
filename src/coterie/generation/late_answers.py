"""Answers that are computed and still to be taken apart, which takes a while: neither the model nor others wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from coterie.generation.jobs import Job


class LateAnswers:
    """Requests whose last step is done in a thread of its own.

    Args:
        most: Requests that are at that at a time.
        conclude: Does it, and tells the request.
    """

    def __init__(self, most: int, conclude: Callable[[Job], None]) -> None:
        self._conclude = conclude
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        # Its threads begin with the first of them.
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="coterie-answer")

    def __len__(self) -> int:
        return len(self._jobs)

    def expect(self, job: Job) -> None:
        """Counts a request from now on; :meth:`begin` follows."""
        with self._lock:
            self._jobs.append(job)

    def begin(self, job: Job) -> None:
        """Has a request concluded that no longer takes part in steps."""
        self._pool.submit(self._work, job)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Those that have not been concluded."""
        with self._lock:
            return tuple(self._jobs)

    def shutdown(self) -> None:
        """Concludes no more of them, and waits for those that are at it."""
        self._pool.shutdown(cancel_futures=True)

    def _work(self, job: Job) -> None:
        try:
            self._conclude(job)
        finally:
            with self._lock:
                self._jobs.remove(job)
