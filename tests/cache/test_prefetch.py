"""Hints are only hints."""

import pytest

from coterie.cache import ExpertCache
from coterie.errors import ReadError

from .sources import SMALL, Failing, Gate, TinySource, assert_consistent, assert_is, keys_of, wait_until

KEYS = keys_of(12)


@pytest.fixture
def make(tmp_path):
    caches = []

    def make(slots, before_read=None, **options):
        source = TinySource.uniform(tmp_path, 12, before_read=before_read)
        caches.append(ExpertCache(source, capacity=slots * SMALL.nbytes, **options))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def use(cache, keys):
    with cache.lease(keys) as lease:
        for key, tensors in lease:
            assert_is(key, SMALL, tensors)
    return lease.stats


def settle(cache, count):
    """Waits until so many prefetches have been read."""

    def settled():
        with cache._scheduler.lock:
            return cache.stats().prefetch_issued >= count and not cache._residency.loading

    wait_until(settled)


def consider_all(cache):
    """Waits until every hint has been followed or given up."""

    def considered():
        with cache._scheduler.lock:
            return not cache._scheduler.guesses

    wait_until(considered)


def test_a_hint_makes_a_later_lease_a_hit(make):
    cache = make(8)
    cache.prefetch(KEYS[:3])
    settle(cache, 3)
    stats = use(cache, KEYS[:3])
    assert (stats.hits, stats.bytes_read) == (3, 0)
    stats = cache.stats()
    assert (stats.prefetch_issued, stats.prefetch_used, stats.prefetch_wasted) == (3, 3, 0)
    assert stats.bytes_read == 3 * SMALL.nbytes


def test_a_wrong_hint_is_counted_as_wasted(make):
    cache = make(4)
    cache.prefetch(KEYS[:2])
    settle(cache, 2)
    use(cache, KEYS[2:6])
    assert cache.stats().prefetch_wasted == 2
    assert cache.stats().prefetch_used == 0


def test_a_lease_joins_a_prefetch_on_its_way(make):
    gate = Gate(KEYS[0])
    cache = make(4, gate)
    cache.prefetch(KEYS[:1])
    gate.wait_for(KEYS[0])
    with cache.lease(KEYS[:1]) as lease:
        gate.open()
        assert [key for key, _ in lease] == KEYS[:1]
    assert gate.arrived == KEYS[:1]
    assert cache.stats().prefetch_used == 1


def test_it_never_evicts_what_is_leased_or_predicted(make):
    cache = make(4, eviction="lru")
    with cache.lease(KEYS[:4]) as lease:
        collected = dict(lease)
        cache.prefetch(KEYS[4:])
        consider_all(cache)
        for key, tensors in collected.items():
            assert_is(key, SMALL, tensors)
        assert cache.stats().evictions == 0
    for key in KEYS[:4]:
        use(cache, [key])
    # The expert used longest ago would be the first to go; it was predicted, so the next one goes.
    cache.prefetch(KEYS[:1])
    cache.prefetch(KEYS[4:5])
    settle(cache, 1)
    assert [key for key in KEYS if key in cache] == [KEYS[0], *KEYS[2:5]]


def test_half_of_the_room_at_most_is_promised_to_guesses(make):
    cache = make(6)
    use(cache, KEYS[:6])
    cache.prefetch(KEYS[6:9])
    settle(cache, 3)
    assert all(key in cache for key in KEYS[6:9])
    # Demand takes the unpredicted first.
    use(cache, KEYS[9:12])
    assert all(key in cache for key in KEYS[6:9])


def test_demand_goes_first_and_guesses_leave_a_thread_free(make):
    gate = Gate(*KEYS[:4])
    cache = make(8, gate, read_threads=2)
    cache.prefetch(KEYS[:4])
    gate.wait_for(KEYS[0])
    use(cache, KEYS[8:12])
    # With two threads only one prefetch is under way at a time, so demand was read at once.
    assert gate.arrived[0] == KEYS[0]
    assert set(gate.arrived[1:]) == set(KEYS[8:12])
    gate.open()


def test_a_failed_prefetch_bothers_nobody(make):
    cache = make(4, Failing(ReadError("bad sector"), KEYS[0]))
    cache.prefetch(KEYS[:1])
    settle(cache, 1)
    assert KEYS[0] not in cache
    use(cache, KEYS[:1])
    assert_consistent(cache)


def test_unknown_and_resident_keys_are_passed_over(make):
    cache = make(4)
    use(cache, KEYS[:1])
    cache.prefetch([KEYS[0], KEYS[0]._replace(expert=99)])
    assert cache.stats().prefetch_issued == 0


@pytest.mark.parametrize("slots", [2, 4])
def test_results_are_the_same_with_any_hints(make, slots):
    cache = make(slots)
    for step in range(40):
        cache.prefetch([KEYS[(step * 5 + n) % 12] for n in range(4)])
        use(cache, [KEYS[(step * 7 + n) % 12] for n in range(5)])
    assert_consistent_after_hints(cache)


def assert_consistent_after_hints(cache):
    cache.prefetch([])
    settle(cache, 0)
    assert_consistent(cache)
