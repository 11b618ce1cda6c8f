"""How often each expert is read, for whatever reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from coterie.records import RecordReader


class CountedReads:
    """Reads by expert.

    Attributes:
        of: Key of the expert → how often it was read.
    """

    def __init__(self) -> None:
        self.of: Counter[Any] = Counter()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, every read counts, of whatever model."""
        prepare = RecordReader.prepare

        def counted(reader: RecordReader, key: Any, *args: Any) -> Any:
            self.of[key] += 1
            return prepare(reader, key, *args)

        with patch.object(RecordReader, "prepare", counted):
            yield

    def component(self, name: str) -> tuple[int, int]:
        """Of a component: how many of its experts were read, and how many reads that took."""
        own = [count for key, count in self.of.items() if key.component == name]
        return len(own), sum(own)
