"""Decides what is read next, and wakes who waits for it: one lock for all that."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

import torch

from coterie.cache.cause import Cause
from coterie.cache.claims import Claim, Entry
from coterie.cache.consumer import Consumer
from coterie.cache.forks import watch_forks
from coterie.cache.growth import QUIET_S, Grower
from coterie.cache.open_claims import OpenClaims
from coterie.cache.outstanding import Outstanding
from coterie.cache.predictions import Predictions
from coterie.cache.read_ahead import ReadAhead
from coterie.cache.readers import Readers
from coterie.cache.reads import RecordReader
from coterie.cache.residency import Residency
from coterie.cache.snapshot import Snapshot, snapshot_of
from coterie.cache.statistics import Counters
from coterie.cache.waiting import Waiters
from coterie.errors import CoterieError, ReadError, UsageError
from coterie.spec import ExpertKey

JOURNAL_LIMIT = 256
"""Leases whose hits the policy may not have been told about yet."""


class Scheduler:
    """Serves claims with reads.

    Why nobody waits for ever: a claim that streams holds nothing that it could not give up while its consumer waits
    (see :meth:`Residency.reserve`). A claim whose members must stay together does hold and wait, so only the one at
    the head of a queue may: the others hold nothing until it has all its slots. Reads always end. A consumer may have
    one lease or hold at a time, so whoever computes comes to an end without needing more. What a device still reads
    when its consumer has given it up ends by itself.

    The lock is reentrant because a lease that is garbage-collected releases itself, wherever that happens.

    Args:
        residency: What is in memory.
        predictions: What is predicted and worth having.
        reader: Fills slots.
        counters: Counts requests and waiting.
        threads: Reads at once.
    """

    def __init__(
        self,
        residency: Residency,
        predictions: Predictions,
        reader: RecordReader,
        counters: Counters,
        *,
        threads: int,
    ) -> None:
        self._residency = residency
        self._predictions = predictions
        self._ahead = ReadAhead(residency, predictions, counters)
        self._reader = reader
        self._counters = counters
        self.at_once = threads
        self.lock = threading.RLock()
        self._waiters = Waiters()
        self._claims = OpenClaims(residency, at_once=threads)
        self.outstanding = Outstanding()
        # Read without success before those who wait for them had asked: they are read once more.
        self._again: deque[Entry] = deque()
        self._failure: BaseException | None = None
        self.closed = False
        # Neither closed nor forked: the one thing that the fast path looks at.
        self.usable = True
        self.forked = False
        self._grower = Grower(residency.growth, self.lock, is_quiet=self._is_quiet, on_grown=self._wake_reader)
        # Requests so far, and since when it is so many.
        self._requests = (0, 0.0)
        self._readers = Readers(self, reader, self.lock, at_once=threads)
        watch_forks(self)

    def check_usable(self) -> None:
        """Raises UsageError if the cache is closed or belongs to another process."""
        if self.usable:
            return
        if self.closed and not self.forked:
            raise UsageError("The expert cache is closed.", advice="Open the model again.")
        raise UsageError(
            "The expert cache was made in another process: its reading threads do not survive a fork.",
            advice="Open the model in the process that uses it.",
        )

    def on_forked(self) -> None:
        """The lock may be held by a thread that does not exist here: nothing works any more, and says so."""
        self.forked = True
        self.usable = False

    def open(self, claim: Claim) -> None:
        """Registers a claim, holds what it asks for and is resident, and starts the reads of the rest."""
        with self.lock:
            self.check_usable()
            self._refuse_nesting(claim.consumer)
            self._predictions.over(claim.consumer)
            self._claims.add(claim)
            if claim.upcoming:
                self._ahead.announce(claim.consumer, claim.upcoming)
            find = self._residency.find
            must_queue = claim.together and any(find(key) is None for key in claim.keys)
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
        came_back = False
        try:
            while True:
                with self.lock:
                    if not came_back:
                        came_back = True
                        if (retired := claim.retire_current()) and not claim.together:
                            claim.consumer.fence(partial(self._consumed, claim, retired))
                        self._wake_reader()
                    self._check_claim(claim)
                    if not claim.admitted and self._claims.is_first(claim):
                        self._admit(claim)
                    entries = claim.take_ready(nbytes)
                    if entries or claim.finished:
                        if not claim.together:
                            # Less is ahead of the consumer: more may be read while it computes.
                            self._wake_reader()
                        return entries
                    bar = self._begin_waiting(claim)
                self._wait(claim, bar)
        finally:
            claim.waiting_since = None

    def abort(self, claim: Claim) -> None:
        """As :meth:`release`, where the consumer will not go on as it has announced."""
        if self.forked:
            return
        with self.lock:
            if claim in self._claims:
                self._predictions.over(claim.consumer)
            self.release(claim)

    def release(self, claim: Claim) -> None:
        """Gives up everything that a claim holds, as soon as its consumer says so. Harmless when repeated."""
        if self.forked:
            return
        with self.lock:
            # What is not complete nobody can have begun to read.
            self._let_go(claim, loaded=False)
            claim.consumer.fence(partial(self._let_go, claim))
            self._claims.drop(claim)
            self._waiters.wake_all()
            self._wake_reader()
            if self._predictions:
                self._readers.notify()
            # Last, so that a release that was interrupted is done again when the lease is collected.
            claim.closed = True

    def hold(self, token: object, consumer: Consumer, entries: Sequence[Entry]) -> None:
        """A consumer holds entries that are resident: these are hits. Needs the lock."""
        self._residency.hold(token, consumer, entries)
        if self._predictions.any_made:
            self._predictions.over(consumer)
        self.count_hits(len(entries), entries)

    def release_hold(self, token: object, consumer: Consumer) -> None:
        """Gives up a consumer's hold, as soon as it says so. Harmless when repeated."""
        if self.forked:
            return
        with self.lock:
            consumer.fence(partial(self._end_hold, token))
            self._residency.give_up(token)

    def came(self, consumer: Consumer) -> None:
        """A consumer asks for something in a way of its own: what was predicted of it is over."""
        if self._predictions.any_made:
            with self.lock:
                self._predictions.over(consumer)

    def count_hits(self, count: int, entries: Iterable[Entry]) -> None:
        """So many requests were hits; the policy hears of the entries. Needs the lock."""
        self._counters.hits += count
        self._note_hits(entries)

    def predict(self, consumer: Consumer, keys: Iterable[ExpertKey]) -> None:
        """Notes what a consumer will probably ask for next; unknown keys are passed over."""
        with self.lock:
            self.check_usable()
            self._ahead.predict(consumer, [key for key in keys if self._residency.has(key)])
            if self._predictions:
                self._readers.notify()

    def warm(self, keys: Iterable[ExpertKey], *, share: float, pinned_nbytes: int) -> None:
        """Queues what is worth having; unknown keys are passed over."""
        with self.lock:
            self.check_usable()
            residency = self._residency
            residency.settle()
            self._predictions.warm(
                [key for key in keys if residency.has(key)],
                residency.slot_nbytes,
                nbytes=int(share * residency.capacity),
                pinned_nbytes=min(pinned_nbytes, residency.pinnable_nbytes),
            )
            if self._predictions:
                self._readers.notify()

    def quiesce(self, timeout: float) -> bool:
        """Waits until the reading threads have nothing to do; returns whether that came about in time."""
        with self.lock:
            return self._readers.wait_for_rest(timeout)

    def snapshot(self) -> Snapshot:
        """What is going on now."""
        with self.lock:
            return snapshot_of(
                self._residency,
                self._predictions,
                self._readers,
                self._claims,
                open_files=self._reader.open_files,
                closed=self.closed,
            )

    def close(self, *, wait: bool) -> None:
        """Ends the reading threads and wakes all consumers; with ``wait``, frees the memory too."""
        if self.forked:
            return
        with self.lock:
            self.closed = True
            self.usable = False
            self._waiters.wake_all()
            self._readers.close()
            self._grower.close()
        if not wait:
            return
        self._readers.join()
        self._grower.join()
        with self.lock:
            self._predictions.clear()
            self._residency.close(discard=not self._claims)
        self._reader.close()

    def _let_go(self, claim: Claim, *, loaded: bool = True) -> None:
        """Holds nothing for a claim any more; without ``loaded``, nothing that is still on its way."""
        with self.lock:
            for key in claim.keys:
                entry = self._residency.find(key)
                if entry is not None and (loaded or not entry.loaded):
                    entry.holders.discard(claim)
            if loaded and claim.closed:
                # It comes late: a device has read on.
                self._wake_reader()

    def _end_hold(self, token: object) -> None:
        with self.lock:
            self._residency.let_go(token)
            if self._claims:
                self._wake_reader()

    def _consumed(self, claim: Claim, entries: Sequence[Entry]) -> None:
        """A claim's consumer has no need of these any more: they are only kept as long as there is room."""
        with self.lock:
            claim.consumed.extend(entries)
            self._wake_reader()

    def _refuse_nesting(self, consumer: Consumer) -> None:
        if self._residency.is_holding(consumer) or self._claims.has_one_of(consumer):
            raise UsageError(
                "This consumer already has a lease or a hold: a second one could wait for what the first one holds.",
                advice="Leave the first 'with' block before opening another, or ask for all experts in one lease.",
            )

    def _check_claim(self, claim: Claim) -> None:
        if self.closed or claim.closed:
            raise UsageError(f"The {'expert cache' if self.closed else 'lease'} is closed.")
        if self._failure is not None:
            raise ReadError(
                f"A reading thread of the expert cache has ended with {self._failure!r}.",
                advice="Open the model again.",
            ) from self._failure
        if claim.error is not None:
            raise claim.error

    def _note_hits(self, entries: Iterable[Entry]) -> None:
        if self._residency.note_hits(entries) > JOURNAL_LIMIT:
            self._readers.notify()

    def _admit(self, claim: Claim) -> None:
        hits: list[Entry] = []
        for key in claim.keys:
            entry = self._residency.find(key)
            if entry is None:
                claim.todo.append(key)
                continue
            claim.join(entry)
            if entry.loaded:
                hits.append(entry)
                # What this scan has announced is a miss all the same, that was mended in time.
                claim.hits += not (claim.prefill and entry.announced)
            if not entry.loaded or claim.prefill:
                self._ask(claim, entry)
        claim.admitted = True
        self._counters.hits += claim.hits
        self._counters.misses += len(claim.keys) - claim.hits
        if hits and not claim.prefill:
            self._note_hits(hits)
        if claim.todo:
            self._readers.notify()
        elif self._claims.leave_queue(claim):
            self._waiters.wake_all()

    def _begin_waiting(self, claim: Claim) -> threading.Lock:
        self._claims.begin_waiting(claim)
        self._readers.notify()
        self._grower.notify()
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
        return not self._claims and now - self._requests[1] > QUIET_S

    def settle(self) -> None:
        """Tells the policy what it has not been told about yet."""
        self._residency.settle()

    def next_entry(self, *, ahead: bool) -> Entry | None:
        """What to read next: for a claim, what was announced, or, unless it is ``ahead`` of its turn, a prediction."""
        entry = self._failed() or self._demanded() or self._announced() or (None if ahead else self._predicted())
        if entry is not None:
            entry.asked = frozenset(entry.holders)
            self.outstanding.begin(entry)
        self._grower.notify()
        return entry

    def has_demand(self) -> bool:
        """Whether a claim wants something read, or a prediction is there."""
        if self._is_demanded():
            return True
        return bool(self._predictions) and (self._predictions.any_announced or not self.outstanding.demanded)

    def conclude(
        self, entry: Entry, tensors: tuple[torch.Tensor, ...], nbytes: int, error: CoterieError | None
    ) -> None:
        """Gives consumers an entry that has been read, or the reason why it could not be."""
        self.outstanding.end(entry)
        self._publish(entry, tensors, nbytes, error)
        self._waiters.wake_all()

    def fail(self, error: BaseException) -> None:
        """Has every consumer raise: a reading thread is gone."""
        self._failure = error
        self._waiters.wake_all()

    def _wake_reader(self) -> None:
        if self._is_demanded() or self._predictions.any_announced:
            self._readers.notify()

    def _is_demanded(self) -> bool:
        return bool(self._again) or self._claims.want_reads

    def _failed(self) -> Entry | None:
        """What is read once more; nobody may want it any more."""
        while self._again:
            entry = self._again.popleft()
            if entry.holders:
                return entry
            self._residency.abandon(entry)
            self._waiters.wake_all()
        return None

    def _demanded(self) -> Entry | None:
        for claim in self._claims.by_urgency():
            while claim.todo:
                key = claim.todo[0]
                entry = self._residency.find(key)
                read = entry is None
                if entry is None:
                    others = [other for other in self._claims if other is not claim]
                    entry = self._residency.reserve(key, claim.layouts[key], claim, others)
                    if entry is None:
                        # Nobody behind it may take the room that it waits for.
                        return None
                    entry.cold = claim.prefill and not self._predictions.is_worth_having(key)
                    claim.ahead.add(key)
                self._grant(claim, entry)
                if read:
                    return entry
        return None

    def _grant(self, claim: Claim, entry: Entry) -> None:
        claim.todo.popleft()
        claim.join(entry)
        if entry.loaded and not claim.prefill:
            self._note_hits([entry])
        self._ask(claim, entry)
        if entry.loaded or (not claim.todo and claim.together):
            self._waiters.wake_all()
        if not claim.todo:
            self._claims.leave_queue(claim)

    def _ask(self, claim: Claim, entry: Entry) -> None:
        if entry.announced:
            claim.bytes_read += entry.unclaimed_nbytes
            entry.unclaimed_nbytes = 0
            if not entry.loaded:
                entry.reader = claim
        self._residency.note_use(entry)
        self.outstanding.demand(entry)

    def _announced(self) -> Entry | None:
        """What a scan will ask for, once all that is asked for is being read; in slots that scans are done with."""
        if not self._predictions.any_announced or self._is_demanded():
            return None
        if self._residency.is_full:
            for claim in self._claims:
                if claim.prefill:
                    claim.relinquish()
        return self._ahead.take_announced()

    def _predicted(self) -> Entry | None:
        # The disk serves those who wait, undisturbed; room that somebody waits for is not for predictions either; and
        # one read stays free for whoever comes next.
        reads = self.outstanding
        if reads.demanded or len(reads.ahead) >= max(1, self.at_once - 1) or self._is_demanded():
            return None
        return self._ahead.take()

    def _publish(
        self, entry: Entry, tensors: tuple[torch.Tensor, ...], nbytes: int, error: CoterieError | None
    ) -> None:
        waiting = [holder for holder in tuple(entry.holders) if isinstance(holder, Claim)]
        self._counters.nbytes[entry.cause] += nbytes
        if entry.reader is not None:
            entry.reader.bytes_read += nbytes
            entry.reader = None
        elif entry.announced:
            entry.unclaimed_nbytes = nbytes
        if error is not None:
            self._refuse(entry, waiting, error)
            return
        self._residency.complete(entry, tensors)
        for claim in waiting:
            claim.arrive(entry)

    def _refuse(self, entry: Entry, waiting: Sequence[Claim], error: CoterieError) -> None:
        """A read has failed: for who had asked when it began. Who came later is owed a read of its own."""
        for claim in waiting:
            if claim in entry.asked:
                claim.fail(entry.key, error)
                entry.holders.discard(claim)
        later = [claim for claim in waiting if claim not in entry.asked]
        if not later:
            self._residency.abandon(entry)
            return
        entry.reader, entry.cause = later[0], Cause.DEMAND
        self._again.append(entry)
        self._readers.notify()
