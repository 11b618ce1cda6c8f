"""The leases that are open, and in which order what they ask for is read."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

from coterie.cache.claims import Claim
from coterie.cache.consumer import Consumer
from coterie.cache.residency import Residency


class OpenClaims:
    """The claims of the leases that are open; guarded by the cache's lock.

    Of the claims whose members must stay together and that lack slots only the first in a queue may hold while it waits
    for more.

    Args:
        residency: Says how far a prefill may read ahead.
        at_once: Reads outstanding at most.
    """

    def __init__(self, residency: Residency, *, at_once: int) -> None:
        self._residency = residency
        self._at_once = at_once
        self._claims: dict[Claim, None] = {}
        self._queue: deque[Claim] = deque()
        self._tickets = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._claims)

    def __iter__(self) -> Iterator[Claim]:
        # A copy, because collecting a lost lease can change the table at any moment.
        return iter(tuple(self._claims))

    def __contains__(self, claim: Claim) -> bool:
        return claim in self._claims

    @property
    def queued(self) -> int:
        """Claims in the queue."""
        return len(self._queue)

    @property
    def want_reads(self) -> bool:
        """Whether any of them still needs slots."""
        return any(claim.todo for claim in self)

    def add(self, claim: Claim) -> None:
        """A lease is opened."""
        self._claims[claim] = None

    def enqueue(self, claim: Claim) -> bool:
        """A claim that must have all its members together takes its turn; returns whether that has come."""
        self._queue.append(claim)
        return self.is_first(claim)

    def is_first(self, claim: Claim) -> bool:
        """Whether it is the turn of a claim that is in the queue."""
        return self._queue[0] is claim

    def leave_queue(self, claim: Claim) -> bool:
        """A claim has all its slots, or needs them no more; returns whether it was in the queue."""
        if claim not in self._queue:
            return False
        self._queue.remove(claim)
        return True

    def drop(self, claim: Claim) -> None:
        """A lease is closed. Harmless when repeated."""
        self.leave_queue(claim)
        self._claims.pop(claim, None)

    def has_one_of(self, consumer: Consumer) -> bool:
        """Whether a consumer has a lease open."""
        return any(claim.consumer is consumer for claim in self)

    def begin_waiting(self, claim: Claim) -> None:
        """A claim's consumer waits, from now on if it has not before."""
        if claim.waiting_since is None:
            claim.waiting_since = next(self._tickets)

    def by_urgency(self) -> list[Claim]:
        """Those that may have something read now, most urgent first."""

        def urgency(claim: Claim) -> tuple[int, int]:
            if claim.together:
                return (0, 0)
            return (1, claim.waiting_since or 0) if claim.starving else (2, 0)

        able = [claim for claim in self if claim.todo and (claim.starving or self._may_read_ahead(claim))]
        able.sort(key=urgency)
        return able

    def _may_read_ahead(self, claim: Claim) -> bool:
        if claim.together:
            return True
        if claim.prefill:
            return len(claim.ahead) < self._residency.scan_depth(claim.layouts[claim.todo[0]].nbytes)
        return len(claim.ahead) < 2 * self._at_once + 1
