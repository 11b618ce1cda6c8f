"""The expert cache: experts in memory under a byte budget, and the leases by which a caller has them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import NoReturn, Self

from coterie.cache.arena import SlotArena
from coterie.cache.bank_view import BankView, Holds
from coterie.cache.cause import Cause
from coterie.cache.claims import Claim, Entry, OpenClaims, Tensors
from coterie.cache.consumer import Consumer
from coterie.cache.early_memory import EarlyMemory
from coterie.cache.guard import Guard
from coterie.cache.predictions import Predictions
from coterie.cache.residency import Residency
from coterie.cache.scheduler import Scheduler
from coterie.cache.snapshot import Snapshot
from coterie.cache.statistics import CacheStats, Counters, LeaseStats, ReadTimes
from coterie.cache.warm_set import WARM_SHARE
from coterie.errors import MemoryBudgetError, UsageError
from coterie.eviction import EvictionPolicy, LfuPolicy, LruPolicy, PromptUse, make_policy
from coterie.records.reads import RecordReader
from coterie.spec import DEFAULT_POLICY, BankKey, ExpertKey, ExpertSource, Phase


class ExpertCache:
    """Holds experts in memory and reads the others when they are asked for. Safe to use from several threads.

    A decode step that needs few experts and finds them resident is served by a :meth:`view`, which costs a few
    microseconds; where it has not all, :meth:`lease` reads what is missing while the caller computes on the rest::

        held = view.try_hold(ids, consumer)
        if held is not None:
            with held:
                compute(held.tensors)
        else:
            with cache.lease(keys, consumer=consumer) as lease:
                for key, tensors in lease:
                    compute_one(key, tensors)

    Args:
        source: Where the experts come from.
        capacity: Bytes that experts may take in memory; more than all of them have is clipped to that.
        eviction: A policy's name (``"markov"``, ``"lru"``, ``"lfu"``, ``"lfru"``) or a policy of your own, empty: such
            as a :class:`~coterie.eviction.TrustPolicy`.
        verify_reads: Compare every record read with its checksum, where the source has one.
        read_threads: Reads at once.
        read_nbytes: Longer records are read in several reads of about the same length; None for one.
        direct: Whether to read past the page cache where the filesystem can.
        early: Memory that was found before, stopped: the cache begins with it, and finds the rest when processors are
            idle, if that is slow.

    Raises:
        MemoryBudgetError: If the capacity is below :attr:`minimum`.
        UsageError: For an unknown policy or a setting out of range.
    """

    def __init__(
        self,
        source: ExpertSource,
        *,
        capacity: int,
        eviction: str | EvictionPolicy[ExpertKey] = DEFAULT_POLICY,
        verify_reads: bool = False,
        read_threads: int = 4,
        read_nbytes: int | None = None,
        direct: bool = True,
        early: EarlyMemory | None = None,
    ) -> None:
        for name, value in (("read_threads", read_threads), ("read_nbytes", read_nbytes)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}.", got=value)
        policy = make_policy(eviction) if isinstance(eviction, str) else eviction
        self._counters = Counters()
        self._predictions = Predictions()
        self._guard = Guard()
        claims = OpenClaims(at_once=read_threads)
        self._holds = holds = Holds(self._guard, self._predictions, claims, self._counters)
        self._residency = Residency(source, capacity, policy, self._predictions, holds, self._counters, early)
        reader = RecordReader(source, verify=verify_reads, direct=direct, read_nbytes=read_nbytes)
        self._scheduler = Scheduler(
            self._guard,
            self._residency,
            self._predictions,
            claims,
            holds,
            reader,
            self._counters,
            threads=read_threads,
        )

    @property
    def capacity(self) -> int:
        """Bytes that experts may take."""
        return self._residency.capacity

    @property
    def scans_badly(self) -> bool:
        """Whether its policy keeps nothing of what is asked for in turns, if that is more than there is room for."""
        return isinstance(self._residency.policy, LruPolicy | LfuPolicy)

    @property
    def minimum(self) -> int:
        """The least capacity in bytes for this source."""
        return self._residency.minimum

    @property
    def total_bytes(self) -> int:
        """Bytes that all experts of the source would take."""
        return self._residency.total_bytes

    @property
    def warm_share(self) -> float:
        """Share of the experts that are not pinned that decoding can have in memory; a prefill turns over the rest."""
        with self._guard.lock:
            return self._residency.warm_share

    @property
    def is_reading(self) -> bool:
        """Whether a read is under way that somebody has asked for, as somebody sees it who only looks."""
        return self._scheduler.is_reading

    @property
    def reads_at_once(self) -> int:
        """Reads outstanding at most."""
        return self._scheduler.at_once

    def wants_processor(self) -> bool:
        """Whether memory that is being found for the arena is worth a processor that would be idle for it.

        That goes by how long consumers have waited since the last call.
        """
        return self._scheduler.wants_processor()

    @property
    def failure(self) -> BaseException | None:
        """What has ended a reading thread, so that nothing can be read any more; None if all is well."""
        return self._scheduler.failure

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether an expert is resident at this moment."""
        return key in self._residency

    def lease(
        self,
        keys: Iterable[ExpertKey],
        *,
        consumer: Consumer,
        ordered: bool = False,
        phase: Phase = "decode",
        upcoming: Iterable[ExpertKey] = (),
        prompt: PromptUse[ExpertKey] | None = None,
    ) -> Lease:
        """A lease of experts, to be entered with ``with`` and iterated over.

        Works at any capacity from :attr:`minimum` on, for any number of keys and consumers. See :class:`Lease` for how
        long the tensors are valid.

        Args:
            keys: The experts; repeated ones count once.
            consumer: Who computes with them.
            ordered: Yield in the order of ``keys``, reading ahead, instead of in the order of arrival.
            phase: ``"prefill"`` for passes over most experts: they reuse their own slots when the arena is full and
                leave what decoding has warmed alone.
            upcoming: What the consumer will almost certainly lease after this, soonest first. Once all reads of
                this lease have begun, reading goes straight on with that, within what a prefill may have read ahead,
                until the consumer's next lease or hold, or until this one is left by an exception. Advice: it changes
                no result.
            prompt: What the last tokens of a prefill use. It is as if decoding had asked for what is kept of that.

        Raises:
            ExpertMissingError: If the source does not have one of ``keys``; those of ``upcoming`` are passed over.
            UsageError: If the cache is closed, or for an unknown phase; on entering, if the consumer already has one.
        """
        if not self._guard.usable:
            self._guard.check()
        if phase not in ("prefill", "decode"):
            raise UsageError.unknown("phase", phase, ("prefill", "decode"))
        distinct = tuple(dict.fromkeys(keys))
        with self._guard.lock:
            layouts = [self._residency.layout(key) for key in distinct]
        prefill = phase == "prefill"
        claim = Claim(
            distinct,
            layouts,
            ordered=ordered,
            together=not prefill and self._bytes_of(distinct) <= self.capacity,
            prefill=prefill,
            consumer=consumer,
            upcoming=upcoming,
            prompt=prompt,
        )
        return Lease(self._scheduler, claim, self)

    def to_read(self, keys: Iterable[ExpertKey]) -> dict[ExpertKey, int]:
        """Those of some experts that are neither in memory nor on their way there, each with the bytes of its record.

        It says how things are at this moment; nothing is read or held.

        Raises:
            ExpertMissingError: If the source does not have one of them.
            UsageError: If the cache is closed.
        """
        if not self._guard.usable:
            self._guard.check()
        residency = self._residency
        with self._guard.lock:
            return {key: residency.layout(key).nbytes for key in keys if residency.find(key) is None}

    def view(self, bank: BankKey, experts: int) -> BankView:
        """The experts of one bank by id, for a decode step.

        Args:
            bank: The bank.
            experts: E, how many it has, absent ones included.

        Raises:
            UsageError: If the cache is closed.
        """
        if not self._guard.usable:
            self._guard.check()
        with self._guard.lock:
            return BankView(self._holds, self._residency.by_bank, bank, experts)

    def predict(self, keys: Iterable[ExpertKey], *, consumer: Consumer, after: int = 0) -> None:
        """Says what a consumer will probably ask for, likeliest first. Advice: it changes no result.

        Reads it while no read is under way that somebody asked for, evicting nothing that is leased or predicted; what
        is needed soonest is read first. With the lease or hold that it is about, whatever that asks for, it is over:
        what has been started by then is joined or finished, the rest is dropped. A later prediction of the same lease
        takes its place.

        Args:
            keys: The experts; those that the source does not have are passed over.
            consumer: Who asks.
            after: Leases and holds of the consumer that come before: 0 for its next one.

        Raises:
            UsageError: If ``after`` is negative, or the cache is closed.
        """
        if after < 0:
            raise UsageError(f"after={after} cannot be.", got=after)
        self._scheduler.predict(consumer, keys, after=after)

    def warm(self, keys: Iterable[ExpertKey], *, share: float = WARM_SHARE, pinned_nbytes: int = 0) -> None:
        """Says which experts will be used most. Advice: it changes no result. A later call supersedes an earlier one.

        As many of them as fit in a share of the capacity are read while nothing else is to be read, into free slots
        and those of experts that no decode step has asked for. Until one does, they leave before those that have been
        of use, the least valuable first. What a prefill reads of them stays as if decoding had asked for it.

        Args:
            keys: Most valuable first; those that the source does not have are passed over.
            share: Of the capacity.
            pinned_nbytes: The most valuable ones, as many as fit in so many bytes, leave only when nothing else can.
                Two slots are never pinned.

        Raises:
            UsageError: If the share is not between 0 and 1, or the cache is closed.
        """
        if not 0 <= share <= 1 or pinned_nbytes < 0:
            raise UsageError(f"share={share}, pinned_nbytes={pinned_nbytes}: these cannot be.")
        self._scheduler.warm(keys, share=share, pinned_nbytes=pinned_nbytes)

    def keep(self, keys: Iterable[ExpertKey], *, leaving: int = 0) -> None:
        """Says which experts are to stay from now on. Advice: it changes no result. A later call supersedes an earlier.

        They are read while nothing else is to be read, before what is worth most (:meth:`warm`), and leave only when
        nothing else can. What a larger capacity has room for again is read when this is called again.

        Args:
            keys: The experts, or none; those that the source does not have are passed over.
            leaving: Bytes that are left to all others, whatever the capacity is or becomes: as many are kept as fit
                beside that, and beside what is pinned. Two slots are left in any case.

        Raises:
            UsageError: If ``leaving`` is negative, or the cache is closed.
        """
        if leaving < 0:
            raise UsageError(f"leaving={leaving} cannot be.", got=leaving)
        self._scheduler.keep(keys, leaving=leaving)

    @property
    def keeps_unread(self) -> bool:
        """Whether the capacity has become larger since :meth:`keep` was called, so that more could be read and kept."""
        return self._predictions.any_put_off

    def resize(self, capacity: int) -> bool:
        """Changes how many bytes experts may take in memory. Changes no result.

        Evicts what is too much, and returns its memory. Not for the main thread: an interrupt could come in between.

        Args:
            capacity: Bytes; more than all of them have is clipped to that.

        Returns:
            Whether no more than that is in use now. What is leased, or being read, stays until it is not: then ask
            again.

        Raises:
            MemoryBudgetError: If that is below :attr:`minimum`.
            UsageError: If the cache is closed.
        """
        if capacity < self.minimum:
            raise MemoryBudgetError(
                f"{capacity} bytes for experts are too little: at least {self.minimum} are needed.",
                budget=capacity,
                minimum=self.minimum,
            )
        return self._scheduler.resize(capacity)

    def expect_use(self, expected: Mapping[ExpertKey, float]) -> None:
        """Tells a policy that goes by it (``trust``) how often each expert is used per token; others do not listen."""
        self._guard.check()
        with self._guard.lock:
            self._residency.expect_use(expected)

    @property
    def all_resident(self) -> bool:
        """Whether every expert of the source is resident."""
        return self._residency.all_resident

    def read_times(self) -> ReadTimes:
        """How long reads were under way, and how long they were waited for."""
        if self._guard.forked:
            self._guard.check()
        with self._guard.lock:
            demanded_s, ahead_s = self._scheduler.read_seconds()
            return ReadTimes(demanded_s=demanded_s, ahead_s=ahead_s, wait_s=self._counters.wait_s)

    def stats(self) -> CacheStats:
        """The counts so far and what is resident now."""
        if self._guard.forked:
            self._guard.check()
        residency, counters = self._residency, self._counters
        with self._guard.lock:
            untold = residency.untold()
            return CacheStats(
                requests=counters.requests,
                hits=counters.hits,
                misses=counters.misses,
                bytes_read=sum(counters.nbytes.values()),
                wait_s=counters.wait_s,
                evictions=counters.evictions,
                capacity=residency.capacity,
                resident_bytes=residency.arena.in_use,
                resident_count=len(residency.loaded),
                committed_bytes=residency.arena.committed,
                new_slots=residency.arena.new_slots,
                prefetch_hinted=counters.predicted,
                prefetch_issued=counters.issued[Cause.PREDICTION],
                prefetch_used=counters.used[Cause.PREDICTION] + untold[Cause.PREDICTION],
                prefetch_in_time=counters.in_time[Cause.PREDICTION] + untold[Cause.PREDICTION],
                prefetch_wasted=counters.wasted[Cause.PREDICTION],
                prefetch_bytes=counters.nbytes[Cause.PREDICTION],
                announced_issued=counters.issued[Cause.ANNOUNCEMENT],
                announced_used=counters.used[Cause.ANNOUNCEMENT] + untold[Cause.ANNOUNCEMENT],
                warmed=counters.issued[Cause.WARMING],
                warmed_used=counters.used[Cause.WARMING] + untold[Cause.WARMING],
                warmed_bytes=counters.nbytes[Cause.WARMING],
                pinned=len(self._predictions.pinned),
            )

    def snapshot(self) -> Snapshot:
        """What the cache is doing at this moment: for tests and benchmarks. It changes nothing."""
        return self._scheduler.snapshot()

    def quiesce(self, *, timeout: float = 60.0) -> Snapshot:
        """Waits until the reading threads have nothing left to do, and says what is there then.

        For tests and benchmarks: until something else is asked for, what was announced, predicted or is worth having
        has been read, or given up because there is no room for it.

        Args:
            timeout: Seconds that this may take.

        Raises:
            UsageError: If it takes longer.
        """
        if not self._scheduler.quiesce(timeout):
            raise UsageError(f"The expert cache is still reading after {timeout} seconds.", got=timeout)
        return self._scheduler.snapshot()

    def close(self) -> None:
        """Ends the reading threads, closes the files and frees the memory. Harmless when repeated.

        Waiting consumers raise UsageError. Memory that an open lease or hold still looks into is freed with its last
        tensor.
        """
        self._scheduler.close(wait=True)

    def __enter__(self) -> Self:
        self._guard.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Collection can happen on a reading thread, which cannot wait for itself: they are told, not awaited.
        scheduler = getattr(self, "_scheduler", None)
        if scheduler is not None and not self._guard.closed:
            with contextlib.suppress(Exception):
                scheduler.close(wait=False)

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "An expert cache cannot be copied or pickled: it has threads, open files and memory of its own.",
            advice="Open the model again where it is needed.",
        )

    def _bytes_of(self, keys: Iterable[ExpertKey]) -> int:
        return sum(SlotArena.slot_nbytes(self._residency.layout(key).nbytes) for key in keys)


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
