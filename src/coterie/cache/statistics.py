"""What the cache counted."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.cache.cause import Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStats:
    """What one lease asked for and what that took.

    Attributes:
        requested: Distinct experts asked for.
        hits: Of these, resident when the lease began.
        misses: The others, whether read for this lease or already on their way for another; for a prefill also those
            that were read early because it had announced them.
        bytes_read: Bytes read from disk for this lease, so far.
        wait_s: Seconds that its consumer waited.
        evictions: Experts evicted to make room for it.
    """

    requested: int = 0
    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    wait_s: float = 0.0
    evictions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """Counts since the cache was made, and what it holds now.

    Attributes:
        requests: Experts asked for: hits + misses.
        hits: Of these, found resident.
        misses: Of these, not yet resident.
        bytes_read: Bytes read from disk, those read ahead included.
        wait_s: Seconds that consumers waited for experts, added up over threads.
        evictions: Experts evicted.
        capacity: Bytes that experts may take.
        resident_bytes: Bytes of the slots that hold or receive an expert.
        resident_count: Experts that are ready for use.
        committed_bytes: Bytes of memory that experts have taken so far, whether it holds one now or not.
        new_slots: Experts that were read to memory in which nothing had been before.
        prefetch_hinted: Experts that were not in memory when somebody said that they will probably be asked for.
        prefetch_issued: Reads started because of that; the rest was dropped, or read because it was asked for.
        prefetch_used: Of these, asked for before they were evicted.
        prefetch_in_time: Of these, in memory by then; the others were still on their way.
        prefetch_wasted: Of these, evicted without having been asked for.
        prefetch_bytes: Bytes of ``bytes_read`` that they read.
        announced_issued: Reads started because a prefill had announced what it would lease next; not among those.
        announced_used: Of these, asked for before they were evicted.
        warmed: Reads started because somebody said that the expert is worth having; not among those.
        warmed_used: Of these, asked for before they were evicted.
        warmed_bytes: Bytes of ``bytes_read`` that they read.
        pinned: Experts that leave only when nothing else can, resident or not.
    """

    requests: int
    hits: int
    misses: int
    bytes_read: int
    wait_s: float
    evictions: int
    capacity: int
    resident_bytes: int
    resident_count: int
    committed_bytes: int
    new_slots: int
    prefetch_hinted: int
    prefetch_issued: int
    prefetch_used: int
    prefetch_in_time: int
    prefetch_wasted: int
    prefetch_bytes: int
    announced_issued: int
    announced_used: int
    warmed: int
    warmed_used: int
    warmed_bytes: int
    pinned: int

    @property
    def hit_rate(self) -> float:
        """Hits per request; 0 before the first."""
        return self.hits / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTimes:
    """Seconds since the cache was made.

    Attributes:
        demanded_s: In which a read was under way that somebody had asked for.
        ahead_s: In which none was, but one ahead of any request.
        wait_s: That consumers waited, added up over threads.
    """

    demanded_s: float
    ahead_s: float
    wait_s: float


class Counters:
    """The running counts behind :class:`CacheStats`; guarded by the cache's lock.

    Attributes:
        predicted: Experts that were not in memory when it was said that they will probably be asked for.
        issued: Reads begun, by cause.
        used: Of these, asked for before they left; of demanded ones none, as they were asked for before they were read.
        in_time: Of these, in memory by then.
        wasted: Read and evicted without having been asked for.
        nbytes: Bytes read.
    """

    __slots__ = (
        "evictions", "hits", "in_time", "issued", "misses", "nbytes", "predicted", "used", "wait_s", "wasted",
    )  # fmt: skip

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.wait_s = 0.0
        self.evictions = 0
        self.predicted = 0
        self.issued = dict.fromkeys(Cause, 0)
        self.used = dict.fromkeys(Cause, 0)
        self.in_time = dict.fromkeys(Cause, 0)
        self.wasted = dict.fromkeys(Cause, 0)
        self.nbytes = dict.fromkeys(Cause, 0)

    @property
    def requests(self) -> int:
        """Experts asked for."""
        return self.hits + self.misses
