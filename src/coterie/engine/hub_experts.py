"""Experts of a store on the Hub, fetched when a router asks for them, and kept in the Hub's cache."""

from __future__ import annotations

import threading
from collections.abc import Collection

from coterie.engine.fetching import FetchCounts
from coterie.origins.hub_segments import HubSegment
from coterie.origins.store_place import StorePlace
from coterie.records.remote import RangeReader
from coterie.spec import ExpertKey, ExpertSource, Extent, RecordLayout
from coterie.store import Record, Store


class HubExperts:
    """The experts of a store of which only a part is here; an :class:`~coterie.spec.ExpertSource`.

    A record that comes is compared with its checksum before it is used or kept.

    Args:
        place: The store, in a repository.
        store: The same, opened without its experts.
        experts: Which of them: the store, or a component of it.
    """

    def __init__(self, place: StorePlace, store: Store, experts: ExpertSource) -> None:
        self._store = store
        self._experts = experts
        self._reader = RangeReader(rate=None if place.repository is None else place.repository.rate)
        self._segments: dict[str, HubSegment] = place.segments(store, self._reader)
        self._lock = threading.Lock()
        self._fetched: set[ExpertKey] = set()
        self._fetched_nbytes = 0

    def counts(self) -> FetchCounts:
        """What was fetched so far."""
        with self._lock:
            count = len(self._fetched)
            return FetchCounts(experts=count, nbytes=self._fetched_nbytes, added=count)

    def close(self) -> None:
        """Makes what was fetched durable. Harmless when repeated."""
        self._reader.stop()
        for segment in self._segments.values():
            segment.close()

    # --- ExpertSource -------------------------------------------------------------------------------------------

    def keys(self) -> Collection[ExpertKey]:
        """The experts of the store, here or not."""
        return self._experts.keys()

    def layout(self, key: ExpertKey) -> RecordLayout:
        """The layout of this expert's record."""
        return self._experts.layout(key)

    def extents(self, key: ExpertKey) -> tuple[Extent, ...] | None:
        """Where this machine has the record, or None if it has to be fetched."""
        segment, record = self._place(key)
        if segment is None:
            return self._experts.extents(key)
        source = segment.here(record)
        return None if source is None else (Extent(source=source, offset=record.offset, nbytes=record.nbytes),)

    def read_into(self, key: ExpertKey, record: memoryview) -> int:
        """Reads a record, fetching it if it is not here; returns the bytes read.

        Raises:
            ChecksumError, CheckpointFileError: If it cannot be had.
            ReadError: If it cannot be read here.
        """
        segment, facts = self._place(key)
        if segment is None:
            return self._experts.read_into(key, record)
        nbytes = segment.read_into(facts, record.cast("B"))
        if nbytes:
            with self._lock:
                self._fetched.add(key)
                self._fetched_nbytes += nbytes
        return facts.nbytes

    def checksum(self, key: ExpertKey) -> str | None:
        """That of the record."""
        return self._experts.checksum(key)

    def _place(self, key: ExpertKey) -> tuple[HubSegment | None, Record]:
        segment, record = self._store.manifest.places[key]
        return self._segments.get(segment.file), record
