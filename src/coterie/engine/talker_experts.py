"""The experts of a talker stay in memory while it speaks.

A frame of sound uses some experts of every layer of the talker, soon nearly all of them, and the text that goes on
beside it uses experts that are four times as large. Left to the eviction policy, each pushes the other's out, and the
talker's are read again for frame after frame.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from coterie.cache import ExpertCache
from coterie.errors import UsageError
from coterie.spec import ExpertKey

_TALKER = "talker"


class TalkerExperts:
    """Has the cache keep the talker's experts for as long as anybody speaks. Safe to use from several threads.

    Args:
        cache: The experts in memory.
        keys: All that there are.
        nbytes: What the talker's may take of the memory of all: what one token of the text uses is to be left.
    """

    def __init__(self, cache: ExpertCache, keys: Iterable[ExpertKey], nbytes: int) -> None:
        self._cache = cache
        self._keys = [key for key in keys if key.component == _TALKER]
        self._nbytes = max(0, nbytes)
        self._speaking = 0
        self._lock = threading.Lock()

    @contextmanager
    def stay(self) -> Iterator[None]:
        """Inside, they leave only when nothing else can."""
        self._change(1)
        try:
            yield
        finally:
            with suppress(UsageError):  # the model was closed
                self._change(-1)

    def _change(self, by: int) -> None:
        with self._lock:
            before, self._speaking = self._speaking, self._speaking + by
            if self._keys and bool(before) != bool(self._speaking):
                self._cache.keep(self._keys if self._speaking else (), nbytes=self._nbytes)
