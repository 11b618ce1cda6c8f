"""What a cache asks of a policy, and what it tells it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class EvictionPolicy(Protocol[K]):
    """Chooses who leaves. It holds keys and sizes only, and is called under the cache's lock.

    Every key is told about exactly once by :meth:`insert` before :meth:`hit` or :meth:`remove`. Choosing a victim
    does not remove it: the cache does, with :meth:`remove`, once the memory is really given back.
    """

    def insert(self, key: K, nbytes: int, *, cold: bool = False) -> None:
        """A record of ``nbytes`` became resident; ``cold`` ones (of a prefill) are to leave first."""
        ...

    def hit(self, key: K) -> None:
        """A resident record was used again."""
        ...

    def remove(self, key: K) -> None:
        """A record is no longer resident."""
        ...

    def victims(self, needed_bytes: int, is_evictable: Callable[[K], bool]) -> list[K]:
        """The records to evict, first one first, so that together they give at least ``needed_bytes``.

        Returns an empty list if all evictable records together do not suffice: nothing is evicted in vain.
        """
        ...
