"""The experts of a talker stay in memory while it speaks.

A frame of sound uses some experts of every layer of the talker, soon nearly all of them, and the text that goes on
beside it uses experts that are four times as large. Left to the eviction policy, each pushes the other's out, and the
talker's are read again for frame after frame.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from coterie.cache import ExpertCache
from coterie.spec import ExpertKey

_TALKER = "talker"


class TalkerExperts:
    """Has the cache keep the talker's experts for as long as anybody speaks. Safe to use from several threads.

    They are kept until the next pass of another component, if nobody speaks by then: an answer that follows finds them.

    Args:
        cache: The experts in memory.
        keys: All that there are.
        leaving: Bytes that are left to other experts: what one token of the text uses.
    """

    def __init__(self, cache: ExpertCache, keys: Iterable[ExpertKey], leaving: int) -> None:
        self._cache = cache
        self._keys = [key for key in keys if key.component == _TALKER]
        self._leaving = leaving
        self._speaking = 0
        self._kept = False
        self._lock = threading.Lock()

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._keys)

    @contextmanager
    def stay(self) -> Iterator[None]:
        """Inside, they leave only when nothing else can."""
        with self._lock:
            self._keep(bool(self._keys))
            self._speaking += 1
        try:
            yield
        finally:
            with self._lock:
                self._speaking -= 1

    def pass_begins(self, component: str) -> None:
        """A forward pass of a component begins."""
        if not self._kept or component == _TALKER:
            return
        if not self._speaking:
            with self._lock:
                self._keep(self._speaking > 0)
        elif self._cache.keeps_unread:
            # Encoders have done, and experts have their memory again.
            with self._lock:
                if self._kept:
                    self._cache.keep(self._keys, leaving=self._leaving)

    def _keep(self, kept: bool) -> None:
        if kept != self._kept:
            self._cache.keep(self._keys if kept else (), leaving=self._leaving)
            self._kept = kept
