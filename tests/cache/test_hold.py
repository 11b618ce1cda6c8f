"""Holds: everything resident at once, or nothing."""

import gc
import threading

import pytest

from coterie.cache import ExpertCache
from coterie.errors import MemoryBudgetError, ReadError

from .sources import PATIENCE_S, SMALL, Failing, TinySource, assert_consistent, assert_is, keys_of

KEYS = keys_of(8)


@pytest.fixture
def cache(tmp_path):
    source = TinySource.uniform(tmp_path, 8, before_read=Failing(ReadError("bad sector"), KEYS[7]))
    with ExpertCache(source, capacity=4 * SMALL.nbytes) as cache:
        yield cache


def test_a_try_that_fails_holds_nothing_and_counts_nothing(cache):
    assert cache.try_hold(KEYS[:2]) is None
    with cache.hold(KEYS[:1]):
        pass
    before = cache.stats()
    assert cache.try_hold(KEYS[:2]) is None
    assert cache.stats() == before
    assert_consistent(cache)


def test_a_hold_has_the_tensors_in_the_order_asked_for(cache):
    keys = [KEYS[2], KEYS[0], KEYS[1], KEYS[2]]
    for _ in range(2):
        with cache.hold(keys) as held:
            for key, tensors in zip(keys, held.tensors, strict=True):
                assert_is(key, SMALL, tensors)
    assert cache.stats().misses == 3
    assert_consistent(cache)


def test_a_held_expert_is_not_evicted(cache):
    with cache.hold(KEYS[:2]) as held:
        views = list(held.tensors)
        done = threading.Event()

        def other():
            for _ in range(3):
                with cache.lease(KEYS[2:7]) as lease:
                    for key, tensors in lease:
                        assert_is(key, SMALL, tensors)
            done.set()

        threading.Thread(target=other, daemon=True).start()
        assert done.wait(PATIENCE_S)
        for key, tensors in zip(KEYS, views, strict=False):
            assert_is(key, SMALL, tensors)
    assert_consistent(cache)


def test_more_than_the_capacity_cannot_be_held(cache):
    assert not cache.fits(KEYS[:5])
    assert cache.fits(KEYS[:4])
    with pytest.raises(MemoryBudgetError, match="lease") as caught:
        cache.hold(KEYS[:5])
    assert caught.value.minimum == 5 * SMALL.nbytes


def test_a_hold_of_nothing_leaves_nothing(cache):
    with cache.hold([]) as held:
        assert held.tensors == []
    assert_consistent(cache)


def test_a_failed_read_holds_nothing(cache):
    with pytest.raises(ReadError, match="bad sector"):
        cache.hold([KEYS[0], KEYS[7]])
    assert_consistent(cache)
    with cache.hold([KEYS[0], KEYS[7]]) as held:
        assert_is(KEYS[7], SMALL, held.tensors[1])


def test_a_lost_hold_and_a_repeated_release_do_no_harm(cache):
    held = cache.hold(KEYS[:4])
    del held
    gc.collect()
    held = cache.try_hold(KEYS[:4])
    held.release()
    held.release()
    assert_consistent(cache)


def test_holds_count_as_use(cache):
    with cache.hold(KEYS[:4]):
        pass
    # More holds than the journal keeps, so that the policy hears of them from a reading thread as well.
    for _ in range(600):
        cache.try_hold(KEYS[:1]).release()
    with cache.hold(KEYS[4:7]):
        pass
    assert KEYS[0] in cache
    assert cache.stats().hits == 600
