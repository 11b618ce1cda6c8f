"""How an opened model's experts are read: how many at once, in reads of which size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from coterie.errors import UsageError
from coterie.plan.disk_notes import DiskNotes, Note, forced_reads_at_once
from coterie.plan.queue_depth import LEAST_RECORDS
from coterie.records import LocalFile
from coterie.spec import ExpertSource, Extent
from coterie.spec.footprint import READS_AT_ONCE

WORTH_TUNING = 256 * 2**20
"""Bytes of experts below which all of them are read before a trial of the disk would be over."""

_MOST_PLACES = 1024
_MEMORY = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How to read.

    Attributes:
        at_once: Reads outstanding at most.
        read_nbytes: The longest single read; None for whole records.
    """

    at_once: int = READS_AT_ONCE
    read_nbytes: int | None = None


def reading_for(experts: ExpertSource, *, memory: int) -> Reading:
    """What the disk that a store lies on was found to like; found out now if it is not known yet.

    That takes about a second, once for each disk and size of record. ``COTERIE_READS_AT_ONCE`` overrides it.

    Args:
        experts: The store. Experts that are not one aligned run of bytes, as in checkpoints, are read as by default.
        memory: Bytes that may be taken for buffers meanwhile.

    Raises:
        UsageError: If the environment variable is not a number.
    """
    forced = forced_reads_at_once()
    if forced is not None:
        return Reading(at_once=forced)
    sizes = [experts.layout(key).nbytes for key in experts.keys()]
    if sum(sizes) < WORTH_TUNING:
        return Reading()
    note = _tuned(experts, memory=memory, anew=False)
    if note is None:
        return Reading()
    return Reading(at_once=note.tuning.at_once, read_nbytes=note.tuning.read_nbytes(note.tuning.record))


def tune_anew(experts: ExpertSource) -> Note:
    """Finds out how the disk that a store lies on is read best, whatever is known, and keeps it.

    Raises:
        UsageError: If it cannot be found out.
    """
    note = _tuned(experts, memory=_MEMORY, anew=True)
    if note is None:
        raise UsageError(
            "How many reads at once suit this disk cannot be found out: that takes direct reads and at least "
            f"{LEAST_RECORDS} experts of one size, and a disk that is not too slow.",
            advice=f"A model is read {READS_AT_ONCE} at once then; COTERIE_READS_AT_ONCE=N changes that.",
        )
    return note


def _tuned(experts: ExpertSource, *, memory: int, anew: bool) -> Note | None:
    places = record_places(experts)
    if not places:
        return None
    record = statistics.mode(place.nbytes for place in places)
    file = places[0].source
    if not isinstance(file, LocalFile):
        return None
    return DiskNotes().tuned(file.path, record, places, memory=memory, version=version("coterie"), anew=anew)


def record_places(experts: ExpertSource) -> Sequence[Extent]:
    """Where whole records lie, of a share of the experts that is spread over all of them."""
    keys = list(experts.keys())
    places: list[Extent] = []
    for key in keys[:: -(-len(keys) // _MOST_PLACES) or 1]:
        extents = experts.extents(key)
        if extents is not None and len(extents) == 1:
            places.append(extents[0])
    return places
