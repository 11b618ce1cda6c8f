"""Evicts the record that became resident first, whatever was used since."""

from collections.abc import Callable
from typing import Generic

from coterie.eviction.protocol import K
from coterie.eviction.selection import take_until


class ToyPolicy(Generic[K]):
    """First in, first out.

    Attributes:
        chosen: Victims of all such policies.
    """

    chosen = 0

    def __init__(self) -> None:
        self._sizes: dict[K, int] = {}

    def insert(self, key: K, nbytes: int, *, cold: bool = False) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        self._sizes[key] = nbytes

    def hit(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""

    def remove(self, key: K) -> None:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        del self._sizes[key]

    def victims(self, needed_bytes: int, is_evictable: Callable[[K], bool]) -> list[K]:
        """See :class:`~coterie.eviction.EvictionPolicy`."""
        found = take_until(self._sizes, self._sizes, needed_bytes, is_evictable)
        ToyPolicy.chosen += len(found)
        return found
