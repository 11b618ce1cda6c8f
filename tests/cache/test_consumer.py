"""Consumers: what one leases and holds is its own, until it says that nothing reads it any more."""

import gc
import threading

import pytest

from coterie.cache import Consumer, ExpertCache
from coterie.errors import UsageError
from coterie.eviction import LruPolicy

from .sources import (
    PATIENCE_S,
    SMALL,
    Device,
    TinySource,
    assert_consistent,
    assert_is,
    bring,
    collecting_after,
    keys_of,
    wait_until,
)

KEYS = keys_of(8)
BANK = KEYS[0].bank_key


def test_one_consumer_has_one_lease_or_hold(open_cache):
    cache = open_cache(4)
    bring(cache, KEYS[:2])
    one, other = Consumer(), Consumer()
    view = cache.view(BANK, 8)
    with view.try_hold([0, 1], one):
        with pytest.raises(UsageError, match="already has a lease"), cache.lease(KEYS[2:3], consumer=one):
            pass
        with cache.lease(KEYS[2:3], consumer=other) as lease:
            assert [key for key, _ in lease] == KEYS[2:3]
    assert_consistent(cache)


def test_a_consumer_may_go_from_thread_to_thread(open_cache):
    cache, one = open_cache(4), Consumer()
    lease = cache.lease(KEYS[:2], consumer=one)
    lease.__enter__()
    got = []
    thread = threading.Thread(target=lambda: got.extend(lease))
    thread.start()
    thread.join(PATIENCE_S)
    lease.close()
    assert {key for key, _ in got} == set(KEYS[:2])
    assert_consistent(cache)


def test_a_hold_ends_when_its_consumer_says_so(open_cache):
    cache, device = open_cache(4), Device()
    bring(cache, KEYS[:4])
    with cache.view(BANK, 8).try_hold([0, 1], device) as held:
        tensors = held.tensors
    # The hold is over: the device may come for something else, in other slots.
    for keys in (KEYS[4:6], KEYS[6:8]):
        with cache.lease(keys, consumer=device) as lease:
            assert dict(lease).keys() == set(keys)
        device.pending.pop()()
    for key, one in zip(KEYS, tensors, strict=False):
        assert key in cache
        assert_is(key, SMALL, one)
    device.finish()
    bring(cache, KEYS[4:8])
    assert not any(key in cache for key in KEYS[:4])
    assert_consistent(cache)


def test_a_lease_ends_when_its_consumer_says_so(open_cache):
    cache, device = open_cache(4), Device()
    with cache.lease(KEYS[:2], consumer=device) as lease:
        tensors = dict(lease)
    # The lease is over: the next one may begin, in other slots.
    with cache.lease(KEYS[2:4], consumer=device) as lease:
        assert dict(lease).keys() == set(KEYS[2:4])
    assert cache.snapshot().leases == 0
    assert cache.snapshot().held == set(KEYS[:4])
    for key, one in tensors.items():
        assert_is(key, SMALL, one)
    device.finish()
    bring(cache, KEYS[4:8])
    assert_consistent(cache)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_stream_waits_for_room_until_its_device_has_read(open_cache, phase):
    cache, device = open_cache(2), Device()
    ended = threading.Event()

    def finish_now_and_then():
        while not ended.wait(0.001):
            device.finish()

    thread = threading.Thread(target=finish_now_and_then)
    thread.start()
    seen = []
    with cache.lease(KEYS, consumer=device, phase=phase) as lease:
        for key, tensors in lease:
            assert_is(key, SMALL, tensors)
            seen.append(key)
    ended.set()
    thread.join(PATIENCE_S)
    device.finish()
    assert sorted(seen) == KEYS
    assert_consistent(cache)


def test_another_consumer_waits_for_what_a_device_still_reads(open_cache):
    cache, device = open_cache(2), Device()
    with cache.lease(KEYS[:2], consumer=device) as lease:
        list(lease)
    thread = threading.Thread(target=bring, args=(cache, KEYS[2:4]))
    thread.start()
    wait_until(lambda: cache.snapshot().waiting)
    assert all(key in cache for key in KEYS[:2])
    device.finish()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert_consistent(cache)


def test_closing_frees_no_memory_that_a_device_still_reads(open_cache):
    cache, device = open_cache(2), Device()
    with cache.lease(KEYS[:2], consumer=device) as lease:
        tensors = dict(lease)
    cache.close()
    for key, one in tensors.items():
        assert_is(key, SMALL, one)
    device.finish()


class Broken(Device):
    """Cannot say when it has read, until it is mended."""

    __slots__ = ("broken",)

    def __init__(self):
        super().__init__()
        self.broken = True

    def fence(self, release):
        if self.broken:
            raise RuntimeError("the device is lost")
        super().fence(release)


@pytest.mark.parametrize("way", ["hold", "lease"])
def test_a_consumer_whose_device_fails_may_ask_again(open_cache, way):
    cache, device = open_cache(4), Broken()
    bring(cache, KEYS[:2])
    if way == "hold":
        leave = cache.view(BANK, 8).try_hold([0, 1], device).release
    else:
        leave = cache.lease(KEYS[:2], consumer=device).__enter__().close
    with pytest.raises(RuntimeError, match="lost"):
        leave()
    # Nobody knows whether the device still reads them.
    assert cache.snapshot().held == set(KEYS[:2])
    assert cache.snapshot().leases == 0
    device.broken = False
    with cache.lease(KEYS[2:4], consumer=device) as lease:
        assert dict(lease).keys() == set(KEYS[2:4])
    device.finish()
    assert cache.snapshot().held.isdisjoint(KEYS[2:4])


def test_nobody_waits_for_a_lease_whose_device_fails(open_cache):
    cache, device = open_cache(3), Broken()
    lease = cache.lease(KEYS[:2], consumer=device)
    lease.__enter__()
    list(lease)
    thread = threading.Thread(target=bring, args=(cache, KEYS[2:4]), daemon=True)
    thread.start()
    wait_until(lambda: cache.snapshot().waiting)
    with pytest.raises(RuntimeError, match="lost"):
        lease.close()
    with pytest.raises(UsageError, match="lease is closed"):
        next(lease)
    # What may still be read stays; the lease is given up again when it is collected.
    assert cache.snapshot().waiting
    device.broken = False
    del lease
    gc.collect()
    device.finish()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert_consistent(cache)


def test_what_is_predicted_of_a_consumer_ends_with_it(open_cache):
    cache, one = open_cache(4), Consumer()
    cache.predict(KEYS[:2], consumer=one)
    assert cache.quiesce().predicted == (frozenset(KEYS[:2]),)
    bring(cache, KEYS[4:6])
    assert cache.snapshot().predicted, "another consumer's lease does not end it"
    del one
    gc.collect()
    assert not cache.snapshot().predicted


@pytest.mark.parametrize("look", ["snapshot", "hold", "lease"])
def test_what_is_lost_may_be_collected_at_any_moment(open_cache, look):
    cache = open_cache(8)
    bring(cache, KEYS)
    view, one, keeping = cache.view(BANK, 8), Consumer(), [Consumer() for _ in range(3)]
    looking = {
        "snapshot": cache.snapshot,
        "hold": lambda: view.try_hold([1], one).release(),
        "lease": lambda: bring(cache, KEYS[:1]),
    }[look]
    for allocations in range(1, 100):
        kept = [view.try_hold([expert], consumer) for expert, consumer in enumerate(keeping)]
        holding, leasing, predicting = Consumer(), Consumer(), Consumer()
        lost = [cache.lease(KEYS[3:4], consumer=leasing).__enter__(), view.try_hold([4], holding)]
        for consumer in (predicting, leasing):
            cache.predict(KEYS[5:6], consumer=consumer)
        with collecting_after(allocations, lost):
            del lost
            looking()
        for held in kept:
            held.release()
    assert_consistent(cache)


def test_a_lease_may_be_lost_while_it_gets_a_slot(tmp_path):
    box, ready = [], threading.Event()

    class Collecting(LruPolicy):
        def victims(self, needed, may_leave):
            if box:
                assert ready.wait(PATIENCE_S)
                box.clear()
            return super().victims(needed, may_leave)

    source = TinySource.uniform(tmp_path, 8)
    with ExpertCache(source, capacity=4 * SMALL.nbytes, eviction=Collecting()) as cache:
        bring(cache, KEYS[:4])
        box.append(cache.lease(KEYS[4:6], consumer=Consumer()))
        box[0].__enter__()
        ready.set()
        wait_until(lambda: not box)
        assert_consistent(cache)
