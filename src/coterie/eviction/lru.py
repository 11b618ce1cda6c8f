"""Least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic

from coterie.eviction.protocol import K
from coterie.eviction.selection import take_until


class LruPolicy(Generic[K]):
    """Evicts what was used the longest ago; every call but a victim search takes constant time.

    A cold insertion goes to the end that leaves first, in front of earlier cold ones: a prefill then turns over its own
    few slots instead of the warm set. A later hit makes it as warm as any other.
    """

    def __init__(self) -> None:
        self._sizes: OrderedDict[K, int] = OrderedDict()
        self.hit = self._sizes.move_to_end  # type: ignore[method-assign]  # the C method itself: one call less per access

    def insert(self, key: K, nbytes: int, *, cold: bool = False) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        self._sizes[key] = nbytes
        if cold:
            self._sizes.move_to_end(key, last=False)

    def hit(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        self._sizes.move_to_end(key)

    def remove(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        del self._sizes[key]

    def victims(self, needed_bytes: int, is_evictable: Callable[[K], bool]) -> list[K]:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        return take_until(self._sizes, self._sizes, needed_bytes, is_evictable)
