"""What a cache is doing at one moment, for tests and benchmarks: they have no other way to look inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.cache.bank_view import Holds
from coterie.cache.claims import Entry, OpenClaims
from coterie.cache.predictions import Predictions
from coterie.cache.residency import Residency
from coterie.records.readers import Readers
from coterie.spec import BankKey, ExpertKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A consistent picture of a cache, taken by :meth:`ExpertCache.snapshot`.

    Attributes:
        resident: Experts that are ready for use.
        by_bank: What each bank's view names, by expert id; it should agree with ``resident``.
        ranked: Experts that the eviction policy could name; they should be those of ``resident``.
        loading: Experts that are being read, with the number of leases that wait for each.
        slots: Size and number of every slot that an expert has, in the order of ``resident`` and then ``loading``.
        held: Experts that must stay because a lease or a hold has them.
        leases: Leases that are open.
        queued: Of these, leases that wait for their turn to have all their experts together.
        waiting: Of these, leases whose consumer is waiting now.
        holds: Holds that are open.
        predicted: What is predicted of each consumer; it is protected until the consumer asks for something.
        untold_uses: Leases and holds whose hits the eviction policy has not been told about yet.
        undecided: Whether the reading threads have yet to look at something that they were woken for.
        prepared: Reads that are ready to begin.
        finished: Reads that have ended, whose leases have yet to be told.
        open_files: Files that are open.
        growing_bytes: Bytes of the slots that are being given memory apart from any read.
        memory_owed: Whether reads did without new memory that the arena is still to be given.
        memory_is_slow: Whether reads take used memory rather than wait for new memory.
        closed: Whether the cache is closed.
    """

    resident: tuple[ExpertKey, ...]
    by_bank: Mapping[BankKey, tuple[ExpertKey | None, ...]]
    ranked: frozenset[ExpertKey]
    loading: Mapping[ExpertKey, int]
    slots: tuple[tuple[int, int], ...]
    held: frozenset[ExpertKey]
    leases: int
    queued: int
    waiting: int
    holds: int
    predicted: tuple[frozenset[ExpertKey], ...]
    untold_uses: int
    undecided: bool
    prepared: int
    finished: int
    open_files: int
    growing_bytes: int
    memory_owed: bool
    memory_is_slow: bool
    closed: bool


def snapshot_of(
    residency: Residency,
    predictions: Predictions,
    readers: Readers[Entry],
    claims: OpenClaims,
    holds: Holds,
    *,
    open_files: int,
    closed: bool,
) -> Snapshot:
    """What is going on in a cache of these parts. Needs its lock."""
    entries = (*residency.loaded.values(), *residency.loading.values())
    return Snapshot(
        resident=tuple(residency.loaded),
        by_bank=residency.by_bank.names(),
        ranked=residency.ranked,
        loading={key: len(entry.holders) for key, entry in residency.loading.items()},
        slots=tuple((entry.slot.nbytes, entry.slot.index) for entry in entries),
        held=frozenset(residency.held()),
        leases=len(tuple(claims)),
        queued=claims.queued,
        waiting=sum(claim.waiting_since is not None for claim in claims),
        holds=len(holds.held),
        predicted=tuple(prediction.keys for prediction in predictions.all()),
        untold_uses=len(holds.journal),
        undecided=readers.undecided,
        prepared=readers.prepared,
        finished=readers.finished,
        open_files=open_files,
        growing_bytes=residency.arena.growing,
        memory_owed=residency.growth.is_owed,
        memory_is_slow=residency.growth.apart,
        closed=closed,
    )
