"""Records that were fetched over a network, kept on the disk until they are in the store, so that none comes twice."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Collection
from pathlib import Path
from typing import IO

from coterie.spec import ExpertKey


class FetchedRecords:
    """A file without a name beside a store, with the records that wait for the store's next growth.

    It goes with the process, however that ends. Safe to use from several threads. Where the disk has no room for a
    record, it is not kept, and has to be fetched again.

    Args:
        directory: The store.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._places: dict[ExpertKey, tuple[int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()

    def put(self, key: ExpertKey, record: memoryview) -> None:
        """Keeps a record, unless it is kept already or cannot be."""
        with self._lock:
            if key in self._places:
                return
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(dir=self._directory, prefix=".coterie.", buffering=0)  # noqa: SIM115 - see close
                self._file.seek(self._end)
                written = 0
                while written < len(record):
                    written += self._file.write(record[written:])
            except OSError:
                return
            self._places[key] = self._end, len(record)
            self._end += len(record)

    def read(self, key: ExpertKey, record: memoryview) -> bool:
        """Fills the memory of a record; False if it is not kept, or cannot be read."""
        with self._lock:
            place = self._places.get(key)
            if place is None or self._file is None:
                return False
            offset, nbytes = place
            try:
                self._file.seek(offset)
                done = 0
                while done < nbytes and (count := self._file.readinto(record[done:nbytes])):  # type: ignore[attr-defined]
                    done += count
            except OSError:
                return False
            return done == nbytes

    def forget(self, keys: Collection[ExpertKey]) -> None:
        """Lets go of records that are in the store."""
        with self._lock:
            for key in [key for key in self._places if key in keys]:
                del self._places[key]
            if not self._places and self._file is not None:
                self._end = 0
                self._file.truncate(0)

    def close(self) -> None:
        """Removes the file. Harmless when repeated."""
        with self._lock:
            self._places.clear()
            if self._file is not None:
                self._file.close()
                self._file = None
