"""What a caller has of the cache while experts are read: a lease, which yields each as it arrives."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from coterie.cache.claims import Claim, Entry, Tensors
from coterie.cache.scheduler import Scheduler
from coterie.cache.statistics import LeaseStats
from coterie.errors import UsageError
from coterie.spec import ExpertKey


class Lease:
    """Yields ``(key, tensors)`` as experts become resident. Made by :meth:`ExpertCache.lease`.

    Entering the context holds the resident experts and starts the reads of the others, which go on while the caller
    computes. Iteration yields the resident ones first, then each as it arrives; or strictly in the given order, if
    the lease is ordered. Leaving the context gives everything up, whatever happened inside.

    How long a yielded tensor is valid:

    - If :attr:`together` is true, until the context ends.
    - Else, until the next ``next()`` (or list of :meth:`batches`). After that it may be evicted to make room.

    A lease is its consumer's, which has at most one lease or hold at a time.
    """

    def __init__(self, scheduler: Scheduler, claim: Claim, owner: object) -> None:
        self._scheduler = scheduler
        self._claim = claim
        # Keeps the cache from being collected under an open lease.
        self._owner = owner
        self._entered = False

    @property
    def together(self) -> bool:
        """Whether every yielded expert stays until the context ends.

        True for decoding if all the lease's experts fit in the cache's capacity; false for a prefill.
        """
        return self._claim.together

    @property
    def stats(self) -> LeaseStats:
        """The figures so far; final once the iteration has ended."""
        claim = self._claim
        requested = len(claim.keys)
        return LeaseStats(
            requested=requested,
            hits=claim.hits,
            misses=requested - claim.hits if claim.admitted else 0,
            bytes_read=claim.bytes_read,
            wait_s=claim.wait_s,
            evictions=claim.evictions,
        )

    def __enter__(self) -> Self:
        if self._entered:
            raise UsageError("A lease can be entered once.", advice="Make another with cache.lease().")
        self._entered = True
        try:
            self._scheduler.open(self._claim)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.close()
        else:
            self._scheduler.release(self._claim)

    def __iter__(self) -> Iterator[tuple[ExpertKey, Tensors]]:
        return self

    def __next__(self) -> tuple[ExpertKey, Tensors]:
        entries = self._take(0)
        if not entries:
            raise StopIteration
        return entries[0].key, entries[0].tensors

    def batches(self, nbytes: int) -> Iterator[list[tuple[ExpertKey, Tensors]]]:
        """Yields what is there, several at a time, waiting while nothing is.

        Those of one list are valid together, for as long as one alone would be.

        Args:
            nbytes: Bytes of the slots of a list, which the consumer keeps from others while it computes; one expert at
                least is in each. It is no limit if all experts stay until the context ends (:attr:`together`).
        """
        if self.together:
            nbytes = sys.maxsize
        while entries := self._take(nbytes):
            yield [(entry.key, entry.tensors) for entry in entries]

    def _take(self, nbytes: int) -> list[Entry]:
        if not self._entered:
            raise UsageError("The lease has not been entered.", advice="Write 'with cache.lease(keys) as lease'.")
        return self._scheduler.take(self._claim, nbytes)

    def close(self) -> None:
        """Gives everything up, and what was to be read for the lease after this one.

        The context does it by itself, and keeps the latter if it is left without an exception.
        """
        self._scheduler.abort(self._claim)

    def __del__(self) -> None:
        # An interrupt can lose a lease before its 'with' block begins, or before it has a claim.
        claim = getattr(self, "_claim", None)
        if claim is not None and not claim.closed:
            with contextlib.suppress(Exception):
                self.close()
