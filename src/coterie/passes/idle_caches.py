"""Caches that are kept though nothing is computed with them: they go when others need the room."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from coterie.hf.caches import empty


class IdleCaches:
    """Those of this process, the one that was used last at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._caches: list[weakref.ref[Any]] = []

    def keep(self, cache: Any) -> None:
        """From now on it may be emptied at any time."""
        with self._lock:
            self._caches = [*self._without(cache), weakref.ref(cache)]

    def take(self, cache: Any) -> bool:
        """From now on it is not; returns False if it has been."""
        with self._lock:
            found = any(one() is cache for one in self._caches)
            self._caches = self._without(cache)
        return found

    def let_one_go(self, among: Callable[[Any], bool]) -> Any | None:
        """Empties the one that was used longest ago, and returns it; None if there is none.

        Args:
            among: Whether a cache is of use to whoever asks.
        """
        with self._lock:
            found = next((cache for one in self._caches if (cache := one()) is not None and among(cache)), None)
            if found is not None:
                self._caches = self._without(found)
                empty(found)
        return found

    def _without(self, cache: Any) -> list[weakref.ref[Any]]:
        return [one for one in self._caches if one() is not None and one() is not cache]


IDLE = IdleCaches()
"""Of this process."""
