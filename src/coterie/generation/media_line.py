"""Requests whose pictures and sounds have to be decoded: while passes go on if there is room for both, else between."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from functools import partial

from coterie.generation.decoding import DECODING
from coterie.generation.governor import Governor
from coterie.generation.jobs import Job
from coterie.generation.preparers import Preparers

Decoded = tuple[Job, BaseException | None]
"""A request, and what went wrong with it."""


class MediaLine:
    """A line of requests that have begun. Belongs to the model's thread where nothing else is said.

    Args:
        preparers: The threads that decode.
        governor: Sets memory aside for that.
        changed: Guards what other threads see of it, and is notified when something has been decoded.
    """

    def __init__(self, preparers: Preparers, governor: Governor, changed: threading.Condition) -> None:
        self._preparers = preparers
        self._governor = governor
        self._changed = changed
        self._going: set[Job] = set()
        self._over: deque[Decoded] = deque()
        self._late: deque[Job] = deque()

    def __len__(self) -> int:
        """Requests that are being decoded beside passes."""
        return len(self._going)

    def __contains__(self, job: object) -> bool:
        return job in self._going or job in self._late

    @property
    def over(self) -> bool:
        """Whether some have been decoded, or could not be."""
        return bool(self._over)

    @property
    def late(self) -> bool:
        """Whether some have to be decoded between two passes."""
        return bool(self._late)

    def add(self, job: Job) -> None:
        """Has a request decoded.

        Raises:
            CoterieError: If memory cannot be set aside.
        """
        room = self._governor.set_aside(job.request)
        with self._changed:
            if room == 0:
                self._late.append(job)
            else:
                self._going.add(job)
                job.work = self._preparers.submit(partial(self._decode, job, room), job.nbytes, decodes=True)

    def withdraw(self, job: Job) -> None:
        """Nobody wants it any more. The lock is held, by any thread."""
        waited = job.work is not None and self._preparers.withdraw(job.work)
        if waited and job in self._going:
            self._going.discard(job)
            self._over.append((job, None))

    def ready(self) -> Iterator[Decoded]:
        """Those that can go on; decodes what has to be decoded between two passes."""
        while self._over:
            job, failed = self._over.popleft()
            self._governor.release(job.request)
            if job.decodes and job.ticket.phase != "over" and failed is None:
                self._late.append(job)
            else:
                yield job, failed
        for _ in range(len(self._late)):
            # Whoever decodes just now has the room for it, and nobody waits for that but who has to.
            if not DECODING.acquire(blocking=False):
                return
            try:
                with self._changed:
                    job = self._late.popleft()
                failed = _decoded_between(job)
            finally:
                DECODING.release()
            yield job, failed

    def _decode(self, job: Job, room: int | None, wanted: bool) -> None:
        """Decodes it beside passes, in another thread; not if the engine has ended meanwhile."""
        failed: BaseException | None = None
        try:
            if wanted and job.ticket.phase != "over":
                job.decode(room)
        except BaseException as error:
            failed = error
        with self._changed:
            self._going.discard(job)
            self._over.append((job, failed))
            self._changed.notify_all()


def _decoded_between(job: Job) -> BaseException | None:
    """What goes wrong with it."""
    try:
        if job.ticket.phase != "over":
            job.decode_between()
    except BaseException as error:
        return error
    return None
