"""The expert cache: experts in memory under a byte budget."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import NoReturn, Self

from coterie.cache.arena import SlotArena
from coterie.cache.claims import Claim
from coterie.cache.lease import Held, Lease
from coterie.cache.outstanding import ReadTimes
from coterie.cache.reads import RecordReader
from coterie.cache.residency import Residency
from coterie.cache.scheduler import Scheduler
from coterie.cache.shelf import Shelf
from coterie.cache.statistics import CacheStats
from coterie.cache.warm_set import WARM_SHARE
from coterie.errors import MemoryBudgetError, UsageError
from coterie.eviction import EvictionPolicy, TrustPolicy, make_policy
from coterie.spec import DEFAULT_POLICY, BankKey, ExpertKey, ExpertSource, Phase, format_bytes


class ExpertCache:
    """Holds experts in memory and reads the others when they are asked for. Safe to use from several threads.

    A decode step that needs few experts and finds them resident is served by a :meth:`shelf`, which costs a few
    microseconds; where it has not all, :meth:`lease` reads what is missing while the caller computes on the rest::

        held = shelf.try_hold(ids)
        if held is not None:
            with held:
                compute(held.tensors)
        else:
            with cache.lease(keys) as lease:
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
        queue_depth: Records that a lease which does not fit may have read and not yet consumed; default twice
            as many as are read at once, and one. A scan never has more than an eighth of the capacity, which is its
            default.
        direct: Whether to read past the page cache where the filesystem can.

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
        queue_depth: int | None = None,
        direct: bool = True,
    ) -> None:
        for name, value in (
            ("read_threads", read_threads),
            ("queue_depth", queue_depth),
            ("read_nbytes", read_nbytes),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}.", got=value)
        policy = make_policy(eviction) if isinstance(eviction, str) else eviction
        self._residency = Residency(source, capacity, policy)
        reader = RecordReader(source, verify=verify_reads, direct=direct, read_nbytes=read_nbytes)
        self._scheduler = Scheduler(self._residency, reader, threads=read_threads, queue_depth=queue_depth)

    @property
    def capacity(self) -> int:
        """Bytes that experts may take."""
        return self._residency.capacity

    @property
    def minimum(self) -> int:
        """The least capacity in bytes for this source."""
        return self._residency.minimum

    @property
    def total_bytes(self) -> int:
        """Bytes that all experts of the source would take."""
        return self._residency.total_bytes

    @property
    def reads_at_once(self) -> int:
        """Reads outstanding at most."""
        return self._scheduler.at_once

    def __contains__(self, key: ExpertKey) -> bool:
        """Whether an expert is resident at this moment."""
        return key in self._residency.loaded

    def fits(self, keys: Iterable[ExpertKey]) -> bool:
        """Whether these experts can all be resident together."""
        return self._bytes_of(set(keys)) <= self.capacity

    def lease(
        self,
        keys: Iterable[ExpertKey],
        *,
        ordered: bool = False,
        phase: Phase = "decode",
        then: Iterable[ExpertKey] = (),
    ) -> Lease:
        """A lease of experts, to be entered with ``with`` and iterated over.

        Works at any capacity from :attr:`minimum` on, for any number of keys and threads. See :class:`Lease` for how
        long the tensors are valid.

        Args:
            keys: The experts; repeated ones count once.
            ordered: Yield in the order of ``keys``, reading ahead, instead of in the order of arrival.
            phase: ``"prefill"`` for scans over most experts: they reuse their own slots when the arena is full and
                leave what decoding has warmed alone.
            then: What this thread will almost certainly lease after this, soonest first. Once all reads of this lease
                have begun, reading goes straight on with that, within what a scan may have read ahead, until the
                thread's next lease or hold, or until this one is left by an exception. Advice: it changes no result.

        Raises:
            ExpertMissingError: If the source does not have one of ``keys``; unknown ones of ``then`` are passed over.
            UsageError: If the cache is closed, or for an unknown phase; on entering, if this thread already has one.
        """
        self._scheduler.check_usable()
        if phase not in ("prefill", "decode"):
            raise UsageError.unknown("phase", phase, ("prefill", "decode"))
        distinct = tuple(dict.fromkeys(keys))
        with self._scheduler.lock:
            layouts = [self._residency.layout(key) for key in distinct]
        prefill = phase == "prefill"
        claim = Claim(
            distinct,
            layouts,
            ordered=ordered,
            together=not prefill and self._bytes_of(distinct) <= self.capacity,
            prefill=prefill,
            thread=threading.get_ident(),
            then=then,
        )
        return Lease(self._scheduler, claim, self)

    def try_hold(self, keys: Sequence[ExpertKey]) -> Held | None:
        """Holds experts if all of them are resident; otherwise does nothing and returns None.

        It never waits. Counts as hits; a failed try counts as nothing. A decode step, whose experts are of one bank,
        asks a :meth:`shelf`.
        """
        scheduler = self._scheduler
        scheduler.check_usable()
        loaded = self._residency.loaded
        held = Held(scheduler)
        with scheduler.lock:
            try:
                held.take([loaded[key] for key in keys])
            except KeyError:
                return None
        return held

    def shelf(self, bank: BankKey, experts: int) -> Shelf:
        """The experts of one bank by id, for a decode step.

        Args:
            bank: The bank.
            experts: E, how many it has, absent ones included.
        """
        with self._scheduler.lock:
            return Shelf(self._scheduler, bank, self._residency.shelf(bank, experts))

    def hold(self, keys: Sequence[ExpertKey]) -> Held:
        """Holds experts together, reading those that are not resident and waiting for them.

        Raises:
            MemoryBudgetError: If they do not fit in the capacity together; lease them instead.
            ExpertMissingError, ReadError, ChecksumError, UsageError: As :meth:`lease` and its iteration.
        """
        held = self.try_hold(keys)
        if held is not None:
            return held
        lease = self.lease(keys)
        if not lease.together:
            needed = self._bytes_of(set(keys))
            raise MemoryBudgetError(
                f"{len(set(keys))} experts take {format_bytes(needed)} together, "
                f"the cache has {format_bytes(self.capacity)}.",
                advice="Iterate over cache.lease(keys), which works in less.",
                budget=self.capacity,
                minimum=needed,
            )
        held = Held(self._scheduler)
        held._lease = lease
        try:
            tensors = dict(lease.__enter__())
        except BaseException:
            held.release()
            raise
        held.tensors = [tensors[key] for key in keys]
        return held

    def prefetch(self, keys: Iterable[ExpertKey]) -> None:
        """Says that these experts will probably be needed soon. Advice: it may be dropped, and changes no result.

        Reads them while no lease waits for a read, evicting nothing that is leased or predicted. A later call
        supersedes what an earlier one has not started.
        """
        self._scheduler.hint(keys)

    def expect(self, keys: Iterable[ExpertKey]) -> None:
        """Says what this thread will probably ask for next, likeliest first. Advice, as :meth:`prefetch`.

        Reads it while no read is under way that somebody asked for. It is over with the thread's next lease or hold,
        whatever that asks for: what has been started by then is joined or finished, the rest is dropped.
        """
        self._scheduler.expect(keys)

    def warm(self, keys: Iterable[ExpertKey], *, share: float = WARM_SHARE, pinned_nbytes: int = 0) -> None:
        """Says which experts will be used most. Advice: it changes no result. A later call supersedes an earlier one.

        As many of them as fit in a share of the capacity are read while nothing else is to be read, into free slots
        and those of experts that no decode step has asked for. Until one does, they leave before those that have been
        of use, the least valuable first. What a scan reads of them stays as if decoding had asked for it.

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

    def expect_use(self, expected: Mapping[ExpertKey, float]) -> None:
        """Tells a policy that goes by it (``trust``) how often each expert is used per token; others do not listen."""
        self._scheduler.check_usable()
        with self._scheduler.lock:
            self._residency.settle()
            if isinstance(self._residency.policy, TrustPolicy):
                self._residency.policy.expect(expected)

    @property
    def all_resident(self) -> bool:
        """Whether every expert of the source is resident."""
        return self._residency.all_resident

    def read_times(self) -> ReadTimes:
        """How long reads were under way, and how long they were waited for."""
        scheduler = self._scheduler
        with scheduler.lock:
            demanded_s, guessed_s = scheduler.outstanding.seconds()
            return ReadTimes(demanded_s=demanded_s, guessed_s=guessed_s, wait_s=self._residency.counters.wait_s)

    def stats(self) -> CacheStats:
        """The counts so far and what is resident now."""
        residency = self._residency
        counters = residency.counters
        with self._scheduler.lock:
            # A prefetch that has been used counts from then on, not from when the policy hears of it.
            fresh = {entry for batch in tuple(residency.journal) for entry in batch if entry.hinted}
            warmed = sum(entry.warmed for entry in fresh)
            used = sum(not entry.announced for entry in fresh) - warmed
            return CacheStats(
                requests=counters.hits + counters.misses,
                hits=counters.hits,
                misses=counters.misses,
                bytes_read=counters.bytes_read,
                wait_s=counters.wait_s,
                evictions=counters.evictions,
                capacity=residency.capacity,
                resident_bytes=residency.arena.in_use,
                resident_count=len(residency.loaded),
                committed_bytes=residency.arena.committed,
                new_slots=residency.arena.new_slots,
                prefetch_hinted=counters.prefetch_hinted,
                prefetch_issued=counters.prefetch_issued,
                prefetch_used=counters.prefetch_used + used,
                prefetch_in_time=counters.prefetch_in_time + used,
                prefetch_wasted=counters.prefetch_wasted,
                prefetch_bytes=counters.prefetch_bytes,
                announced_issued=counters.announced_issued,
                announced_used=counters.announced_used,
                warmed=counters.warmed,
                warmed_used=counters.warmed_used + warmed,
                warmed_bytes=counters.warmed_bytes,
                pinned=len(residency.warm.pinned),
            )

    def huge_page_nbytes(self) -> int:
        """Bytes of the experts' memory that are on huge pages now, as the kernel tells; takes it milliseconds."""
        return self._residency.arena.huge_page_nbytes()

    def close(self) -> None:
        """Ends the reading threads, closes the files and frees the memory. Harmless when repeated.

        Waiting consumers raise UsageError. Memory that an open lease or hold still looks into is freed with its last
        tensor.
        """
        self._scheduler.close(wait=True)

    def __enter__(self) -> Self:
        self._scheduler.check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Collection can happen on a reading thread, which cannot wait for itself: they are told, not awaited.
        scheduler = getattr(self, "_scheduler", None)
        if scheduler is not None and not scheduler.closed:
            with contextlib.suppress(Exception):
                scheduler.close(wait=False)

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "An expert cache cannot be copied or pickled: it has threads, open files and memory of its own.",
            advice="Open the model again where it is needed.",
        )

    def _bytes_of(self, keys: Iterable[ExpertKey]) -> int:
        return sum(SlotArena.slot_nbytes(self._residency.layout(key).nbytes) for key in keys)
