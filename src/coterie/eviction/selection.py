"""Takes victims from an order until they give enough bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from coterie.eviction.protocol import K


def take_until(
    order: Iterable[K], sizes: Mapping[K, int], needed_bytes: int, is_evictable: Callable[[K], bool]
) -> list[K]:
    """The first evictable keys of ``order`` whose sizes reach ``needed_bytes``; empty if all together do not."""
    chosen: list[K] = []
    if needed_bytes <= 0:
        return chosen
    freed = 0
    for key in order:
        if is_evictable(key):
            chosen.append(key)
            freed += sizes[key]
            if freed >= needed_bytes:
                return chosen
    return []
