"""A cache gives memory up while it is used, and takes it back: the least valuable leaves, what is held stays."""

import threading

import pytest

from coterie.cache import ExpertCache
from coterie.errors import MemoryBudgetError, UsageError

from .sources import SMALL, TinySource, assert_consistent, assert_is, keys_of, leased, wait_until

KEYS = keys_of(8)


def use(cache, keys):
    with leased(cache, keys) as lease:
        for _ in lease:
            pass


def test_what_was_used_longest_ago_leaves_and_its_memory_is_returned(open_cache):
    cache = open_cache(6)
    for key in KEYS[:6]:
        use(cache, [key])
    use(cache, KEYS[:2])
    assert cache.resize(3 * SMALL.nbytes)
    assert [key in cache for key in KEYS[:6]] == [True, True, False, False, False, True]
    stats = cache.stats()
    assert (stats.capacity, stats.resident_bytes, stats.committed_bytes) == (3 * SMALL.nbytes,) * 3
    use(cache, KEYS[5:8])
    assert cache.stats().resident_bytes == 3 * SMALL.nbytes
    assert cache.resize(8 * SMALL.nbytes)
    use(cache, KEYS)
    assert cache.all_resident
    assert cache.stats().committed_bytes == 8 * SMALL.nbytes
    assert_consistent(cache)


def test_what_is_held_stays_until_it_is_not(open_cache):
    cache = open_cache(6)
    with leased(cache, KEYS[:4]) as lease:
        held = dict(lease)
        assert not cache.resize(2 * SMALL.nbytes)
        assert all(key in cache for key in held)
    assert cache.resize(2 * SMALL.nbytes)
    assert cache.stats().resident_bytes <= 2 * SMALL.nbytes


def test_less_than_the_least_is_refused_and_nothing_is_changed(open_cache):
    cache = open_cache(6)
    with pytest.raises(MemoryBudgetError) as raised:
        cache.resize(SMALL.nbytes)
    assert raised.value.minimum == 2 * SMALL.nbytes
    assert cache.capacity == 6 * SMALL.nbytes
    cache.close()
    with pytest.raises(UsageError):
        cache.resize(4 * SMALL.nbytes)


def test_who_waits_for_all_at_once_gets_them_before_memory_is_given_up(open_cache):
    cache = open_cache(6)
    found = []

    def ask():
        with leased(cache, KEYS[4:7]) as lease:
            found.extend(key for key, _ in lease)

    with leased(cache, KEYS[:4]) as lease:
        list(lease)
        other = threading.Thread(target=ask)
        other.start()
        wait_until(lambda: cache.snapshot().waiting)
        assert cache.snapshot().queued == 1
        assert not cache.resize(2 * SMALL.nbytes)
    other.join(60)
    assert sorted(found) == sorted(KEYS[4:7])
    assert cache.resize(2 * SMALL.nbytes)
    assert cache.stats().committed_bytes == 2 * SMALL.nbytes
    assert_consistent(cache)


def test_a_lease_that_was_made_when_there_was_room_for_all_gets_them_one_after_the_other(open_cache):
    cache = open_cache(6)
    lease = leased(cache, KEYS[:4])
    assert lease.together
    assert cache.resize(3 * SMALL.nbytes)
    with lease:
        assert not lease.together
        assert sorted(key for key, _ in lease) == sorted(KEYS[:4])
    assert_consistent(cache)


@pytest.mark.parametrize("eviction", ["markov", "lru", "lfu", "lfru"])
def test_it_changes_while_others_read(tmp_path, eviction):
    source = TinySource.uniform(tmp_path, 8)
    failed = []
    with ExpertCache(source, capacity=8 * SMALL.nbytes, eviction=eviction) as cache:
        ended = threading.Event()

        def work(shift):
            try:
                for number in range(200):
                    asked = [KEYS[(number * shift + place) % 8] for place in range(3)]
                    with leased(cache, asked) as lease:
                        for key, tensors in lease:
                            assert_is(key, source.layout(key), tensors)
            except BaseException as error:
                failed.append(error)
            finally:
                ended.set()

        threads = [threading.Thread(target=work, args=(shift,)) for shift in (1, 3)]
        for thread in threads:
            thread.start()
        number = 0
        while not ended.is_set():
            number += 1
            cache.resize((2 + number % 7) * SMALL.nbytes)
        for thread in threads:
            thread.join(60)
        assert not failed
        cache.quiesce()
        assert cache.resize(2 * SMALL.nbytes)
        assert cache.stats().committed_bytes <= 2 * SMALL.nbytes
        assert_consistent(cache)
