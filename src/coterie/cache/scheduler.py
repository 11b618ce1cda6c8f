"""Decides what is read next, and wakes who waits for it: one lock for all that."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

import torch

from coterie.cache.claims import Claim, Entry
from coterie.cache.forks import watch_forks
from coterie.cache.readers import Readers
from coterie.cache.reads import RecordReader
from coterie.cache.residency import Residency
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
        queue_depth: Records that a streaming claim may have read and not consumed.
    """

    def __init__(self, residency: Residency, reader: RecordReader, *, threads: int, queue_depth: int) -> None:
        self.residency = residency
        self._reader = reader
        self.at_once = threads
        self._queue_depth = queue_depth
        self.lock = threading.RLock()
        self._ready = threading.Condition(self.lock)
        self.claims: dict[Claim, None] = {}
        # Claims whose members must stay together and that lack slots; the first may hold while it waits for more.
        self._together: deque[Claim] = deque()
        self._hints: deque[ExpertKey] = deque()
        self._hinted_reads = 0
        self._tickets = itertools.count()
        self._failure: BaseException | None = None
        self.closed = False
        # Neither closed nor forked: the one thing that the fast path looks at.
        self.usable = True
        self.forked = False
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
            self.claims[claim] = None
            find = self.residency.find
            if claim.together and any(find(key) is None for key in claim.keys):
                self._together.append(claim)
                if self._together[0] is not claim:
                    return
            self._admit(claim)

    def take(self, claim: Claim) -> Entry | None:
        """The next entry of a claim, waiting for it if need be; None after the last.

        Raises:
            ReadError, ChecksumError, CoterieError: If a read that the claim waits for failed.
            UsageError: If the lease or the cache is closed meanwhile.
        """
        with self.lock:
            claim.retire_current()
            self._wake_reader()
            try:
                while True:
                    self._check_claim(claim)
                    if not claim.admitted and self._together[0] is claim:
                        self._admit(claim)
                    entry = claim.next_ready()
                    if entry is not None or claim.finished:
                        if not claim.together:
                            # One less is ahead of the consumer: another may be read while it computes.
                            self._wake_reader()
                        return entry
                    self._wait(claim)
            finally:
                claim.waiting_since = None

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
            # Last, so that a release that was interrupted is done again when the lease is collected.
            claim.closed = True
            self._ready.notify_all()
            self._wake_reader()

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

    def hint(self, keys: Iterable[ExpertKey]) -> None:
        """Queues prefetches; unknown keys are passed over."""
        with self.lock:
            self.check_usable()
            wanted = [key for key in keys if self.residency.has(key)]
            # Uses are told late, and one from before a hint must not count as its answer.
            self.residency.settle()
            for key in wanted:
                self.residency.predict(key)
            # The newest hints are the best: what has not been started by now is superseded.
            self._hints = deque(key for key in wanted if self.residency.find(key) is None)
            if self._hints:
                self._readers.notify()

    def close(self, *, wait: bool) -> None:
        """Ends the reading threads and wakes all consumers; with ``wait``, frees the memory too."""
        if self.forked:
            return
        with self.lock:
            self.closed = True
            self.usable = False
            self._ready.notify_all()
            self._readers.close()
        if not wait:
            return
        self._readers.join()
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
            if not entry.loaded or claim.prefill:
                self.residency.note_use(entry)
        claim.admitted = True
        claim.hits = len(hits)
        self.residency.counters.hits += claim.hits
        self.residency.counters.misses += len(claim.keys) - claim.hits
        if hits and not claim.prefill:
            self.note_hits(hits)
        if claim.todo:
            self._readers.notify()
        elif claim in self._together:
            self._together.remove(claim)
            self._ready.notify_all()

    def _wait(self, claim: Claim) -> None:
        began = time.perf_counter()
        if claim.waiting_since is None:
            claim.waiting_since = next(self._tickets)
        try:
            self._readers.notify()
            self._ready.wait()
        finally:
            waited = time.perf_counter() - began
            claim.wait_s += waited
            self.residency.counters.wait_s += waited

    def settle(self) -> None:
        """Tells the policy what it has not been told about yet."""
        self.residency.settle()

    def next_entry(self, *, ahead: bool) -> Entry | None:
        """What to read next: for a claim, or, unless it is read ``ahead`` of its turn, for a hint."""
        return self._demanded() or (None if ahead else self._hinted())

    def has_demand(self) -> bool:
        """Whether a claim wants something read, or a hint is there."""
        return bool(self._hints) or self._is_demanded()

    def conclude(
        self, entry: Entry, tensors: tuple[torch.Tensor, ...], nbytes: int, error: CoterieError | None
    ) -> None:
        """Gives consumers an entry that has been read, or the reason why it could not be."""
        if entry.reader is None:
            self._hinted_reads -= 1
        self._publish(entry, tensors, nbytes, error)
        self._ready.notify_all()

    def fail(self, error: BaseException) -> None:
        """Has every consumer raise: a reading thread is gone."""
        self._failure = error
        self._ready.notify_all()

    def _wake_reader(self) -> None:
        if self._is_demanded():
            self._readers.notify()

    def _is_demanded(self) -> bool:
        # A tuple, because collecting a lost lease can change the table at any moment.
        return any(claim.todo for claim in tuple(self.claims))

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
                    entry.cold = claim.prefill
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
        self.residency.note_use(entry)
        if entry.loaded or (not claim.todo and claim.together):
            self._ready.notify_all()
        if not claim.todo and claim in self._together:
            self._together.remove(claim)

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
        depth = self._queue_depth
        if claim.prefill:
            depth = min(depth, self.residency.scan_depth(claim.layouts[claim.todo[0]].nbytes))
        return len(claim.ahead) < depth

    def _hinted(self) -> Entry | None:
        # One read stays free for demand, and room that somebody waits for is not for guesses.
        busy = self._hinted_reads >= max(1, self.at_once - 1) or self._is_demanded()
        while self._hints and not busy:
            key = self._hints.popleft()
            if self.residency.find(key) is None:
                entry = self.residency.reserve_hinted(key, self.residency.layout(key))
                if entry is not None:
                    self._hinted_reads += 1
                    return entry
        return None

    def _publish(
        self, entry: Entry, tensors: tuple[torch.Tensor, ...], nbytes: int, error: CoterieError | None
    ) -> None:
        waiting = [holder for holder in tuple(entry.holders) if isinstance(holder, Claim)]
        self.residency.counters.bytes_read += nbytes
        if entry.reader is not None:
            entry.reader.bytes_read += nbytes
            entry.reader = None
        if error is not None:
            self.residency.abandon(entry)
            for claim in waiting:
                claim.fail(entry.key, error)
            return
        self.residency.complete(entry, tensors)
        for claim in waiting:
            claim.arrive(entry)
