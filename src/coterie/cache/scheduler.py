"""Serves claims: holds what they ask for, has the rest read, and lets their consumers wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from coterie.cache.bank_view import Holds
from coterie.cache.claims import Claim, Entry, OpenClaims, Waiters
from coterie.cache.consumer import Consumer
from coterie.cache.growth import QUIET_S, Grower
from coterie.cache.guard import Guard
from coterie.cache.predictions import Predictions
from coterie.cache.read_order import ReadOrder
from coterie.cache.residency import Residency
from coterie.cache.snapshot import Snapshot, snapshot_of
from coterie.cache.statistics import Counters
from coterie.errors import ReadError, UsageError
from coterie.records.readers import Readers
from coterie.records.reads import RecordReader
from coterie.spec import ExpertKey

WORTH_GROWING = 0.2
"""Share of the time that consumers wait, from which on the arena's growth is worth more than fast arithmetic."""


class Scheduler:
    """Serves claims with reads.

    Why nobody waits for ever: a claim that streams holds nothing that it could not give up while its consumer waits
    (see :meth:`Residency.reserve`). A claim whose members must stay together does hold and wait, so only the one at
    the head of a queue may: the others hold nothing until it has all its slots. Reads always end. A consumer may have
    one lease or hold at a time, so whoever computes comes to an end without needing more. What a device still reads
    when its consumer has given it up ends by itself.

    Args:
        guard: The cache's lock.
        residency: What is in memory.
        predictions: What is predicted and worth having.
        claims: The leases that are open.
        holds: What is held beside them.
        reader: Fills slots.
        counters: Counts requests and waiting.
        threads: Reads at once.
    """

    def __init__(
        self,
        guard: Guard,
        residency: Residency,
        predictions: Predictions,
        claims: OpenClaims,
        holds: Holds,
        reader: RecordReader,
        counters: Counters,
        *,
        threads: int,
    ) -> None:
        self.guard = guard
        self._residency = residency
        self._predictions = predictions
        self._claims = claims
        self._holds = holds
        self._reader = reader
        self._counters = counters
        self.at_once = threads
        self.lock = guard.lock
        self._waiters = Waiters()
        self._order = ReadOrder(
            residency,
            holds,
            predictions,
            claims,
            counters,
            self._waiters,
            at_once=threads,
            notify=self._notify_reader,
            on_choice=self._notify_grower,
        )
        self._grower = Grower(residency.growth, self.lock, is_quiet=self._is_quiet, on_grown=self._order.wake)
        # Requests so far, and since when it is so many.
        self._requests = (0, 0.0)
        # When it was last asked whether a processor is wanted, and how long consumers had waited by then.
        self._looked = (time.monotonic(), 0.0)
        # What is to stay as far as there is room, and bytes that are left to others.
        self._kept: tuple[list[ExpertKey], int] = ([], 0)
        self._readers = Readers(self._order, reader, self.lock, at_once=threads)
        holds.wake, holds.notify = self._order.wake, self._readers.notify
        with self.lock:
            # The arena may be owed what was not found before there was a cache.
            self._notify_grower()

    @property
    def failure(self) -> BaseException | None:
        """What has ended a reading thread; None if all of them read."""
        return self._order.failure

    @property
    def is_reading(self) -> bool:
        """Whether something is read, or is to be read, that somebody has asked for."""
        return self._order.is_busy

    def wants_processor(self) -> bool:
        """Whether memory is being found for the arena, and that is worth a processor, by the time since the last call.

        It is while consumers wait much: a larger arena saves them more than threads that compute lose by leaving
        processors idle. Where little is waited for, memory can come later.
        """
        (before, waited), now = self._looked, time.monotonic()
        self._looked = now, self._counters.wait_s
        return self._residency.growth.goes_on and self._looked[1] - waited > WORTH_GROWING * (now - before)

    def _notify_reader(self) -> None:
        self._readers.notify()

    def _notify_grower(self) -> None:
        if self._residency.growth.is_owed:
            self._grower.notify()

    def open(self, claim: Claim) -> None:
        """Registers a claim, holds what it asks for and is resident, and starts the reads of the rest."""
        # Before the lock, which may be held for ever in a forked child, and with it.
        if not self.guard.usable:
            self.guard.check()
        with self.lock:
            if not self.guard.usable:
                self.guard.check()
            self._refuse_nesting(claim.consumer)
            if self._predictions.made:
                self._predictions.asked(claim.consumer)
            self._claims.add(claim)
            if claim.upcoming:
                self._order.ahead.announce(claim.consumer, claim.upcoming)
            find = self._residency.find
            must_queue = claim.together and any(find(key) is None for key in claim.keys)
            if must_queue and claim.nbytes > self._residency.capacity:
                # There is less room than when the lease was made.
                claim.together = must_queue = False
            if not must_queue or self._claims.enqueue(claim):
                self._admit(claim)

    def take(self, claim: Claim, nbytes: int = 0) -> list[Entry]:
        """The next entry of a claim, waiting for it if need be; nothing after the last.

        Args:
            claim: Whose.
            nbytes: More that are ready are taken, too, while the slots of all of them have no more bytes than that.

        Raises:
            ReadError, ChecksumError, CoterieError: If a read that the claim waits for failed.
            UsageError: If the lease or the cache is closed meanwhile.
        """
        if self.guard.forked:
            self.guard.check()
        came_back = False
        try:
            while True:
                with self.lock:
                    if not came_back:
                        came_back = True
                        if (retired := claim.retire_current()) and not claim.together:
                            self._when_read(claim.consumer, partial(self._consumed, claim, retired))
                        self._order.wake()
                    self._check_claim(claim)
                    if not claim.admitted and self._claims.is_first(claim):
                        self._admit(claim)
                    entries = claim.take_ready(nbytes)
                    if entries or claim.finished:
                        if not claim.together:
                            # Less is ahead of the consumer: more may be read while it computes.
                            self._order.wake()
                        return entries
                    bar = self._begin_waiting(claim)
                self._wait(claim, bar)
        finally:
            claim.waiting_since = None

    def abort(self, claim: Claim) -> None:
        """As :meth:`release`, where the consumer will not go on as it has announced."""
        if self.guard.forked:
            return
        with self.lock:
            if claim in self._claims.open:
                self._predictions.over(claim.consumer)
            self.release(claim)

    def release(self, claim: Claim) -> None:
        """Gives up everything that a claim holds, as soon as its consumer says so. Harmless when repeated."""
        if self.guard.forked:
            return
        with self.lock:
            if claim.consumer.reads_on:
                # What is not complete nobody can have begun to read.
                self._let_go(claim, loaded=False)
            # First: where a device fails, its consumer may ask again, and others have their turn.
            self._claims.drop(claim)
            self._waiters.wake_all()
            self._order.wake_if_worth_it()
            self._when_read(claim.consumer, partial(self._let_go, claim))
            # Last, so that a release that was interrupted, or failed, is done again when the lease is collected.
            claim.closed = True

    def predict(self, consumer: Consumer, keys: Iterable[ExpertKey], *, after: int = 0) -> None:
        """Notes what a consumer will probably ask for after so many other requests; unknown keys are passed over."""
        if not self.guard.usable:
            self.guard.check()
        with self.lock:
            if not self.guard.usable:
                self.guard.check()
            self._order.ahead.predict(consumer, [key for key in keys if self._residency.has(key)], after=after)
            self._order.wake_if_worth_it()

    def warm(self, keys: Iterable[ExpertKey], *, share: float, pinned_nbytes: int) -> None:
        """Queues what is worth having; unknown keys are passed over."""
        if not self.guard.usable:
            self.guard.check()
        with self.lock:
            if not self.guard.usable:
                self.guard.check()
            residency = self._residency
            residency.tell_hits()
            self._predictions.warm(
                [key for key in keys if residency.has(key)],
                residency.slot_nbytes,
                nbytes=int(share * residency.capacity),
                pinned_nbytes=min(pinned_nbytes, residency.pinnable_nbytes),
            )
            self._order.wake_if_worth_it()

    def keep(self, keys: Iterable[ExpertKey], *, leaving: int) -> None:
        """Queues what is to stay; unknown keys are passed over."""
        if not self.guard.usable:
            self.guard.check()
        with self.lock:
            if not self.guard.usable:
                self.guard.check()
            self._residency.tell_hits()
            self._kept = [key for key in keys if self._residency.has(key)], leaving
            self._keep(self._residency.capacity)
            self._order.wake_if_worth_it()

    def _keep(self, capacity: int, *, read: bool = True) -> None:
        """As many are kept as a capacity has room for."""
        (keys, leaving), residency = self._kept, self._residency
        left = max(leaving, residency.minimum) if capacity < residency.total_bytes else 0
        self._predictions.keep(keys, residency.slot_nbytes, nbytes=capacity - left, read=read)

    def resize(self, capacity: int) -> bool:
        """Changes what experts may take; returns whether no more than that is in use now."""
        if not self.guard.usable:
            self.guard.check()
        with self.lock:
            if not self.guard.usable:
                self.guard.check()
            if self._kept[0]:
                # What there is room for again may have to leave again: an encoder follows the other.
                self._keep(capacity, read=False)
            # Whoever waits to have all at once was told that there is room for all.
            fits = self._residency.resize(max(capacity, least := self._claims.needed_nbytes)) and capacity >= least
            self._readers.notify()
            return fits

    def read_seconds(self) -> tuple[float, float]:
        """Time with a read under way that was asked for, and time with others alone, until now."""
        with self.lock:
            return self._order.outstanding.seconds()

    def quiesce(self, timeout: float) -> bool:
        """Waits until the reading threads have nothing to do; returns whether that came about in time."""
        if self.guard.forked:
            self.guard.check()
        with self.lock:
            return self._readers.wait_for_rest(timeout)

    def snapshot(self) -> Snapshot:
        """What is going on now."""
        if self.guard.forked:
            self.guard.check()
        with self.lock:
            return snapshot_of(
                self._residency,
                self._predictions,
                self._readers,
                self._claims,
                self._holds,
                open_files=self._reader.open_files,
                closed=self.guard.closed,
            )

    def close(self, *, wait: bool) -> None:
        """Ends the reading threads and wakes all consumers; with ``wait``, frees the memory too."""
        if self.guard.forked:
            return
        with self.lock:
            self.guard.close()
            self._waiters.wake_all()
            self._readers.close()
            self._grower.close()
        if not wait:
            return
        self._readers.join()
        self._grower.join()
        with self.lock:
            self._predictions.clear()
            self._residency.close(discard=not self._claims.open)
        self._reader.close()

    def _let_go(self, claim: Claim, *, loaded: bool = True) -> None:
        """Holds nothing for a claim any more; without ``loaded``, nothing that is still on its way."""
        if self.guard.forked:
            return
        with self.lock:
            for key in claim.keys:
                entry = self._residency.find(key)
                if entry is not None and (loaded or not entry.loaded):
                    entry.holders.discard(claim)
            if loaded and claim.closed:
                # It comes late: a device has read on.
                self._order.wake()

    def _consumed(self, claim: Claim, entries: Sequence[Entry]) -> None:
        """A claim's consumer has no need of these any more: they are only kept as long as there is room."""
        if self.guard.forked:
            return
        with self.lock:
            claim.consumed.extend(entries)
            self._order.wake()

    @staticmethod
    def _when_read(consumer: Consumer, release: Callable[[], None]) -> None:
        """Calls ``release`` once the consumer has read what it gives up: now, unless it reads on."""
        if consumer.reads_on:
            consumer.fence(release)
        else:
            release()

    def _refuse_nesting(self, consumer: Consumer) -> None:
        if self._holds.one_of(consumer) or self._claims.has_one_of(consumer):
            raise UsageError(
                "This consumer already has a lease or a hold: a second one could wait for what the first one holds.",
                advice="Leave the first 'with' block before opening another, or ask for all experts in one lease.",
            )

    def _check_claim(self, claim: Claim) -> None:
        if self.guard.closed or claim not in self._claims.open:
            raise UsageError(f"The {'expert cache' if self.guard.closed else 'lease'} is closed.")
        if self._order.failure is not None:
            raise ReadError(
                f"A reading thread of the expert cache has ended with {self._order.failure!r}.",
                advice="Open the model again.",
            ) from self._order.failure
        if claim.error is not None:
            raise claim.error

    def _admit(self, claim: Claim) -> None:
        if claim.prompt is not None and self._holds.uses_matter:
            self._holds.note(claim.prompt)
        hits: list[Entry] = []
        for key in claim.keys:
            entry = self._residency.find(key)
            if entry is None:
                claim.todo.append(key)
                continue
            claim.join(entry)
            if entry.loaded:
                hits.append(entry)
                # What this prefill has announced is a miss all the same, that was mended in time.
                claim.hits += not (claim.prefill and entry.announced)
            if not entry.loaded or claim.prefill:
                self._order.ask(claim, entry)
        claim.admitted = True
        self._counters.hits += claim.hits
        self._counters.misses += len(claim.keys) - claim.hits
        if hits and not claim.prefill and self._holds.uses_matter:
            self._holds.note(hits)
        if claim.todo or claim.reading:
            # What was only predicted until now may be prepared, and no more.
            self._readers.notify()
        if claim.todo:
            return
        if self._claims.leave_queue(claim):
            self._waiters.wake_all()

    def _begin_waiting(self, claim: Claim) -> threading.Lock:
        self._claims.begin_waiting(claim)
        self._order.wake_if_worth_it()
        self._notify_grower()
        return self._waiters.join()

    def _wait(self, claim: Claim, bar: threading.Lock) -> None:
        began = time.perf_counter()
        try:
            self._waiters.wait(bar)
        finally:
            waited = time.perf_counter() - began
            claim.wait_s += waited
            with self.lock:
                self._counters.wait_s += waited

    def _is_quiet(self) -> bool:
        """Whether nobody is likely to compute: a consumer waits, or nothing has been asked for in a while."""
        if any(claim.waiting_since is not None for claim in self._claims):
            return True
        requests, now = self._counters.requests, time.monotonic()
        if requests != self._requests[0]:
            self._requests = (requests, now)
        return not self._claims.open and now - self._requests[1] > QUIET_S
