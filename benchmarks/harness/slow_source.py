"""A source of experts on a slow disk, for models whose experts are too small to be waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from coterie.records import RecordReader


class SlowSource:
    """A source of experts that takes a while for each, however many are asked for at once.

    Args:
        source: The real one.
        seconds: For one record.
    """

    def __init__(self, source: Any, seconds: float) -> None:
        self._source = source
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def extents(self, key: Any) -> None:
        """Has the cache call ``read_into``."""

    def read_into(self, key: Any, record: memoryview) -> int:
        """Reads the record."""
        time.sleep(self._seconds)
        done = 0
        for extent in self._source.extents(key):
            descriptor = os.open(extent.source.path, os.O_RDONLY)
            done += os.preadv(descriptor, [record[extent.at : extent.at + extent.nbytes]], extent.offset)
            os.close(descriptor)
        return done


@contextmanager
def slow_disk(seconds: float | None) -> Iterator[None]:
    """Models that are opened meanwhile read each expert as slowly; None for as fast as the disk is."""
    open_reader = RecordReader.__init__

    def slowly(reader: RecordReader, source: Any, **options: Any) -> None:
        open_reader(reader, source if seconds is None else SlowSource(source, seconds), **options)

    with patch.object(RecordReader, "__init__", slowly):
        yield
