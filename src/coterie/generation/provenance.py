"""What a request took of experts: in forward passes of its own, and apart from these in passes of several requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from coterie.engine.runtime import Runtime
from coterie.spec import Batching

if TYPE_CHECKING:
    from coterie.engine.statistics import BankStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a request took of experts.

    Attributes:
        passes: Forward passes.
        experts_requested: Experts that layers asked for.
        experts_read: Of these, read from disk.
        hit_rate: Share of them that was in memory.
        bytes_read: Bytes read for them.
        read_wait_s: Seconds that the model waited for that.
        experts_absent: Choices of experts that the store does not have.
        experts_left_out: Experts that were not read because the model was opened with ``drop_cold``.
        bytes_not_read: Bytes of these.
        batching: ``exact`` if all that was computed has the bits that it has alone; ``fast`` if it may have others,
            because of who was beside it, or, with ``drop_cold``, because of what was in memory. None of ``shared``.
        drop_cold: Share of a token's highest gate weight below which experts that were not in memory were left out;
            None where all were read, and of ``shared``.
        shared: The same of the passes that computed tokens of other requests, too, all of which it counts for;
            everything else is of passes that were this request's alone. None if there were none.
    """

    passes: int
    experts_requested: int
    experts_read: int
    hit_rate: float
    bytes_read: int
    read_wait_s: float
    experts_absent: int
    experts_left_out: int = 0
    bytes_not_read: int = 0
    batching: Batching | None = None
    drop_cold: float | None = None
    shared: Provenance | None = None


class ProvenanceMeter:
    """Counts what one request takes, pass by pass.

    Args:
        drop_cold: As the model was opened.
    """

    def __init__(self, drop_cold: float | None = None) -> None:
        self._drop_cold = drop_cold
        self._own = _Sums()
        self._shared = _Sums()

    def add(self, before: BankStats, after: BankStats, *, shared: bool) -> None:
        """A pass of it is over.

        Args:
            before: What had been counted before it.
            after: What had been counted after it.
            shared: Whether it computed others' tokens, too.
        """
        (self._shared if shared else self._own).add(before, after)

    def told(self, batching: Batching) -> Provenance:
        """What has come together.

        Args:
            batching: How it was computed.
        """
        shared = self._shared.told() if self._shared.passes else None
        return replace(
            self._own.told(),
            batching=batching if self._drop_cold is None else "fast",
            drop_cold=self._drop_cold,
            shared=shared,
        )


class _Sums:
    def __init__(self) -> None:
        self.passes = self.requested = self.hits = self.misses = self.nbytes = self.absent = 0
        self.left_out = self.bytes_not_read = 0
        self.wait_s = 0.0

    def add(self, before: BankStats, after: BankStats) -> None:
        self.passes += 1
        self.requested += after.requested - before.requested
        self.hits += after.hits - before.hits
        self.misses += after.misses - before.misses
        self.nbytes += after.bytes_read - before.bytes_read
        self.absent += after.absent - before.absent
        self.left_out += after.left_out - before.left_out
        self.bytes_not_read += after.bytes_not_read - before.bytes_not_read
        self.wait_s += after.wait_s - before.wait_s

    def told(self) -> Provenance:
        return Provenance(
            passes=self.passes,
            experts_requested=self.requested,
            experts_read=self.misses,
            hit_rate=round(self.hits / self.requested, 4) if self.requested else 0.0,
            bytes_read=self.nbytes,
            read_wait_s=round(self.wait_s, 6),
            experts_absent=self.absent,
            experts_left_out=self.left_out,
            bytes_not_read=self.bytes_not_read,
        )


def counted(runtime: Runtime, meters: Iterable[ProvenanceMeter | None]) -> BankStats | None:
    """What has been counted so far, if any of these wants to know."""
    return runtime.stats().total if any(meter is not None for meter in meters) else None
