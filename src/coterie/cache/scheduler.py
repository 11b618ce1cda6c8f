"""Decides what is read next, and wakes who waits for it: one lock for all that."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

import torch

from coterie.cache.cause import Cause
from coterie.cache.claims import Claim, Entry
from coterie.cache.forks import watch_forks
from coterie.cache.growth import QUIET_S, Grower
from coterie.cache.guesses import Guesses
from coterie.cache.outstanding import Outstanding
from coterie.cache.readers import Readers
from coterie.cache.reads import RecordReader
from coterie.cache.residency import Residency
from coterie.cache.snapshot import Snapshot
from coterie.cache.waiting import Waiters
from coterie.errors import CoterieError, ReadError, UsageError
from coterie.spec import ExpertKey

JOURNAL_LIMIT = 256
"""Leases whose hits the policy may not have been told about yet."""


class Scheduler:
    """Serves claims with reads.

    Why nobody waits for ever: a claim that streams holds nothing that it could not give up while its consumer waits
    (see :meth:`Residency.reserve`). A claim whose members must stay together does hold and wait, so only the one at
    the head of a queue may: the others hold nothing until it has all its slots. Reads always end. A thread may have
    one lease or hold at a time, so whoever computes comes to an end without needing more.

    The lock is reentrant because a lease that is garbage-collected releases itself, wherever that happens.

    Args:
        residency: What is in memory.
        reader: Fills slots.
        threads: Reads at once.
    """

    def __init__(self, residency: Residency, reader: RecordReader, *, threads: int) -> None:
        self.residency = residency
        self._reader = reader
        self.at_once = threads
        self.lock = threading.RLock()
        self._waiters = Waiters()
        self.claims: dict[Claim, None] = {}
        # Claims whose members must stay together and that lack slots; the first may hold while it waits for more.
        self._together: deque[Claim] = deque()
        self.guesses = Guesses(residency)
        self.outstanding = Outstanding()
        # Read without success before those who wait for them had asked: they are read once more.
        self._again: deque[Entry] = deque()
        self._tickets = itertools.count()
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
            self._refuse_nesting(claim.thread)
            self.guesses.passed(claim.thread)
            self.claims[claim] = None
            if claim.then:
                self.guesses.announce(claim.thread, claim.then)
            find = self.residency.find
            if claim.together and any(find(key) is None for key in claim.keys):
                self._together.append(claim)
                if self._together[0] is not claim:
                    return
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
                        claim.retire_current()
                        self._wake_reader()
                    self._check_claim(claim)
                    if not claim.admitted and self._together[0] is claim:
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
        """As :meth:`release`, where the thread will not go on as it has announced."""
        if self.forked:
            return
        with self.lock:
            if claim in self.claims:
                self.guesses.passed(claim.thread)
            self.release(claim)

    def release(self, claim: Claim) -> None:
        """Gives up everything that a claim holds. Harmless when repeated."""
        if self.forked:
            return
        with self.lock:
            for key in claim.keys:
                entry = self.residency.find(key)
                if entry is not None:
                    entry.holders.discard(claim)
            if claim in self._together:
                self._together.remove(claim)
            self.claims.pop(claim, None)
            self._waiters.wake_all()
            self._wake_reader()
            if self.guesses:
                self._readers.notify()
            # Last, so that a release that was interrupted is done again when the lease is collected.
            claim.closed = True

    def release_hold(self, token: object) -> None:
        """Gives up a hold. Harmless when repeated."""
        if self.forked:
            return
        with self.lock:
            self.residency.holds.pop(token, None)
            if self.claims:
                self._wake_reader()

    def note_hits(self, entries: Sequence[Entry]) -> None:
        """Remembers uses for the policy. Needs the lock."""
        journal = self.residency.journal
        journal.append(entries)
        if len(journal) > JOURNAL_LIMIT:
            self._readers.notify()

    def expect(self, keys: Iterable[ExpertKey]) -> None:
        """Notes what this thread will probably ask for next; unknown keys are passed over."""
        with self.lock:
            self.check_usable()
            self.guesses.expect(threading.get_ident(), [key for key in keys if self.residency.has(key)])
            if self.guesses:
                self._readers.notify()

    def warm(self, keys: Iterable[ExpertKey], *, share: float, pinned_nbytes: int) -> None:
        """Queues what is worth having; unknown keys are passed over."""
        with self.lock:
            self.check_usable()
            self.residency.settle()
            wanted = [key for key in keys if self.residency.has(key)]
            self.residency.warm_up(wanted, share, pinned_nbytes)
            if self.guesses:
                self._readers.notify()

    def quiesce(self, timeout: float) -> bool:
        """Waits until the reading threads have nothing to do; returns whether that came about in time."""
        with self.lock:
            return self._readers.wait_for_rest(timeout)

    def snapshot(self) -> Snapshot:
        """What is going on now."""
        with self.lock:
            residency, readers, claims = self.residency, self._readers, tuple(self.claims)
            entries = (*residency.loaded.values(), *residency.loading.values())
            return Snapshot(
                resident=tuple(residency.loaded),
                shelved=residency.shelved(),
                ranked=residency.ranked(),
                loading={key: len(entry.holders) for key, entry in residency.loading.items()},
                slots=tuple((entry.slot.nbytes, entry.slot.index) for entry in entries),
                held=frozenset(residency.held()),
                leases=len(claims),
                queued=len(self._together),
                waiting=sum(claim.waiting_since is not None for claim in claims),
                holds=len(residency.holds),
                expected=tuple(residency.expected.values()),
                untold_uses=len(residency.journal),
                undecided=readers.undecided,
                prepared=readers.prepared,
                finished=readers.finished,
                open_files=self._reader.open_files,
                growing_bytes=residency.arena.growing,
                memory_owed=residency.growth.is_owed,
                memory_is_slow=residency.growth.apart,
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
            self.residency.close(discard=not self.claims and not self.residency.holds)
        self._reader.close()

    def _refuse_nesting(self, thread: int) -> None:
        holding = (thread for thread, _ in self.residency.holds.values())
        if thread in holding or any(claim.thread == thread for claim in self.claims):
            raise UsageError(
                "This thread already has a lease or a hold: a second one could wait for what the first one holds.",
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

    def _admit(self, claim: Claim) -> None:
        hits: list[Entry] = []
        for key in claim.keys:
            entry = self.residency.find(key)
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
        self.residency.counters.hits += claim.hits
        self.residency.counters.misses += len(claim.keys) - claim.hits
        if hits and not claim.prefill:
            self.note_hits(hits)
        if claim.todo:
            self._readers.notify()
        elif claim in self._together:
            self._together.remove(claim)
            self._waiters.wake_all()

    def _begin_waiting(self, claim: Claim) -> threading.Lock:
        if claim.waiting_since is None:
            claim.waiting_since = next(self._tickets)
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
                self.residency.counters.wait_s += waited

    def _is_quiet(self) -> bool:
        """Whether nobody is likely to compute: a consumer waits, or nothing has been asked for in a while."""
        if any(claim.waiting_since is not None for claim in tuple(self.claims)):
            return True
        counters, now = self.residency.counters, time.monotonic()
        requests = counters.hits + counters.misses
        if requests != self._requests[0]:
            self._requests = (requests, now)
        return not self.claims and now - self._requests[1] > QUIET_S

    def settle(self) -> None:
        """Tells the policy what it has not been told about yet."""
        self.residency.settle()

    def next_entry(self, *, ahead: bool) -> Entry | None:
        """What to read next: for a claim, what was announced, or, unless it is ``ahead`` of its turn, a guess."""
        entry = self._failed() or self._demanded() or self._announced() or (None if ahead else self._guessed())
        if entry is not None:
            entry.asked = frozenset(entry.holders)
            self.outstanding.begin(entry)
        self._grower.notify()
        return entry

    def has_demand(self) -> bool:
        """Whether a claim wants something read, or a guess is there."""
        if self._is_demanded():
            return True
        return bool(self.guesses) and (self.guesses.announced or not self.outstanding.demanded)

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
        if self._is_demanded() or self.guesses.announced:
            self._readers.notify()

    def _is_demanded(self) -> bool:
        # A tuple, because collecting a lost lease can change the table at any moment.
        return bool(self._again) or any(claim.todo for claim in tuple(self.claims))

    def _failed(self) -> Entry | None:
        """What is read once more; nobody may want it any more."""
        while self._again:
            entry = self._again.popleft()
            if entry.holders:
                return entry
            self.residency.abandon(entry)
            self._waiters.wake_all()
        return None

    def _demanded(self) -> Entry | None:
        for claim in self._by_urgency():
            while claim.todo:
                key = claim.todo[0]
                entry = self.residency.find(key)
                read = entry is None
                if entry is None:
                    others = [other for other in tuple(self.claims) if other is not claim]
                    entry = self.residency.reserve(key, claim.layouts[key], claim, others)
                    if entry is None:
                        # Nobody behind it may take the room that it waits for.
                        return None
                    entry.cold = claim.prefill and key not in self.residency.warm.members
                    claim.ahead.add(key)
                self._grant(claim, entry)
                if read:
                    return entry
        return None

    def _grant(self, claim: Claim, entry: Entry) -> None:
        claim.todo.popleft()
        claim.join(entry)
        if entry.loaded and not claim.prefill:
            self.note_hits([entry])
        self._ask(claim, entry)
        if entry.loaded or (not claim.todo and claim.together):
            self._waiters.wake_all()
        if not claim.todo and claim in self._together:
            self._together.remove(claim)

    def _ask(self, claim: Claim, entry: Entry) -> None:
        if entry.announced:
            claim.bytes_read += entry.unclaimed_nbytes
            entry.unclaimed_nbytes = 0
            if not entry.loaded:
                entry.reader = claim
        self.residency.note_use(entry)
        self.outstanding.demand(entry)

    def _by_urgency(self) -> list[Claim]:
        def urgency(claim: Claim) -> tuple[int, int]:
            if claim.together:
                return (0, 0)
            return (1, claim.waiting_since or 0) if claim.starving else (2, 0)

        able = [claim for claim in tuple(self.claims) if claim.todo and (claim.starving or self._may_read_ahead(claim))]
        able.sort(key=urgency)
        return able

    def _may_read_ahead(self, claim: Claim) -> bool:
        if claim.together:
            return True
        if claim.prefill:
            return len(claim.ahead) < self.residency.scan_depth(claim.layouts[claim.todo[0]].nbytes)
        return len(claim.ahead) < 2 * self.at_once + 1

    def _announced(self) -> Entry | None:
        """What a scan will ask for, once all that is asked for is being read; in slots that scans are done with."""
        if not self.guesses.announced or self._is_demanded():
            return None
        if self.residency.is_full:
            for claim in tuple(self.claims):
                if claim.prefill:
                    claim.relinquish()
        return self.guesses.take_announced()

    def _guessed(self) -> Entry | None:
        # The disk serves those who wait, undisturbed; room that somebody waits for is not for guesses either; and one
        # read stays free for whoever comes next.
        reads = self.outstanding
        if reads.demanded or len(reads.guessed) >= max(1, self.at_once - 1) or self._is_demanded():
            return None
        return self.guesses.take()

    def _publish(
        self, entry: Entry, tensors: tuple[torch.Tensor, ...], nbytes: int, error: CoterieError | None
    ) -> None:
        waiting = [holder for holder in tuple(entry.holders) if isinstance(holder, Claim)]
        self.residency.counters.nbytes[entry.cause] += nbytes
        if entry.reader is not None:
            entry.reader.bytes_read += nbytes
            entry.reader = None
        elif entry.announced:
            entry.unclaimed_nbytes = nbytes
        if error is not None:
            self._refuse(entry, waiting, error)
            return
        self.residency.complete(entry, tensors)
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
            self.residency.abandon(entry)
            return
        entry.reader, entry.cause = later[0], Cause.DEMAND
        self._again.append(entry)
        self._readers.notify()
