"""What tests of the cache share beside sources."""

import pytest

from coterie.cache import ExpertCache

from .sources import SMALL, TinySource


@pytest.fixture
def open_cache(tmp_path):
    """Opens caches of so many slots over eight small experts, least recently used first; closes them at the end."""
    caches = []

    def open_cache(slots):
        caches.append(ExpertCache(TinySource.uniform(tmp_path, 8), capacity=slots * SMALL.nbytes, eviction="lru"))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()
