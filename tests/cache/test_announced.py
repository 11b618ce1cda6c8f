"""A prefill that says what it will lease next is read ahead of, and takes nothing for it that others need."""

import gc
import threading
import time

import pytest

from coterie.cache import Consumer, ExpertCache
from coterie.errors import ReadError

from .sources import (
    LARGE,
    PATIENCE_S,
    SMALL,
    Failing,
    Gate,
    TinySource,
    assert_consistent,
    assert_is,
    keys_of,
    leased,
    me,
    run_threads,
    wait_until,
)

LAYERS = [keys_of(16, layer) for layer in range(4)]
ALL = [key for layer in LAYERS for key in layer]


@pytest.fixture
def make(tmp_path):
    caches = []

    def make(slots, before_read=None, **options):
        source = TinySource(tmp_path, dict.fromkeys(ALL, SMALL), before_read=before_read)
        caches.append(ExpertCache(source, capacity=slots * SMALL.nbytes, **options))
        caches[-1].source = source
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def prefill(cache, keys, upcoming=(), **options):
    with leased(cache, keys, phase="prefill", upcoming=upcoming, **options) as lease:
        for key, tensors in lease:
            assert_is(key, SMALL, tensors)
    return lease.stats


def walk(cache, wanted=lambda layer, keys: keys, **options):
    """A prompt's pass: each layer announces all layers behind it."""
    stats = []
    for layer, keys in enumerate(LAYERS):
        then = (key for later in LAYERS[layer + 1 :] for key in later)
        stats.append(prefill(cache, wanted(layer, keys), then, **options))
    return stats


def settle(cache):
    """Waits until the reading threads find nothing to do."""
    cache.quiesce()


def resident(cache, keys):
    return [key for key in keys if key in cache]


def test_reading_goes_on_with_what_was_announced(make):
    cache = make(64)
    prefill(cache, LAYERS[0], LAYERS[1][:5])
    wait_until(lambda: len(resident(cache, LAYERS[1])) == 5)
    stats = prefill(cache, LAYERS[1][:6])
    assert (stats.requested, stats.hits, stats.misses) == (6, 0, 6), "mended in time, and misses all the same"
    assert stats.bytes_read == 6 * SMALL.nbytes
    figures = cache.stats()
    assert (figures.announced_issued, figures.announced_used) == (5, 5)
    assert figures.prefetch_issued == figures.prefetch_used == figures.prefetch_bytes == 0
    assert figures.bytes_read == 22 * SMALL.nbytes


def test_all_that_is_asked_for_is_read_first(make):
    gate = Gate(LAYERS[0][5])
    cache = make(64, gate, read_threads=1)
    with leased(cache, LAYERS[0][:8], phase="prefill", upcoming=LAYERS[1][:3]) as lease:
        gate.wait_for(LAYERS[0][5])
        gate.open()
        list(lease)
    wait_until(lambda: len(gate.arrived) == 11)
    assert gate.arrived == LAYERS[0][:8] + LAYERS[1][:3]


def test_it_needs_no_idle_disk(make):
    """While the last read that was asked for is under way, the next one begins."""
    gate = Gate(LAYERS[0][0])
    cache = make(64, gate, read_threads=2)
    with leased(cache, LAYERS[0][:1], phase="prefill", upcoming=LAYERS[1][:2]) as lease:
        gate.wait_for(LAYERS[1][0])
        gate.open()
        assert [key for key, _ in lease] == LAYERS[0][:1]


def test_an_eighth_of_the_cache_at_most_is_ahead(make):
    cache = make(32)
    prefill(cache, LAYERS[0][:2], ALL[16:])
    settle(cache)
    assert resident(cache, ALL[16:]) == LAYERS[1][:4]
    # What is ahead already counts.
    prefill(cache, LAYERS[0][2:4], ALL[16:])
    settle(cache)
    assert resident(cache, ALL[16:]) == LAYERS[1][:4]


def test_the_next_lease_joins_what_is_on_its_way(make):
    gate = Gate(LAYERS[1][0])
    cache = make(64, gate)
    prefill(cache, LAYERS[0][:2], LAYERS[1][:1])
    gate.wait_for(LAYERS[1][0])
    with leased(cache, LAYERS[1][:2], phase="prefill") as lease:
        gate.open()
        assert {key for key, _ in lease} == set(LAYERS[1][:2])
    assert lease.stats.bytes_read == 2 * SMALL.nbytes
    assert gate.arrived.count(LAYERS[1][0]) == 1


@pytest.mark.parametrize("leave", ["exception", "close", "collected"])
def test_a_scan_that_breaks_off_announces_nothing(make, leave):
    gate = Gate(*LAYERS[1][:2])
    cache = make(64, gate, read_threads=1)
    lease = leased(cache, LAYERS[0][:1], phase="prefill", upcoming=LAYERS[1][:4])
    if leave == "exception":

        def interrupted():
            with lease:
                gate.wait_for(LAYERS[1][1])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
    else:
        lease.__enter__()
        gate.wait_for(LAYERS[1][1])
        if leave == "close":
            lease.close()
        else:
            del lease
            gc.collect()
    gate.open()
    settle(cache)
    assert resident(cache, ALL) == [LAYERS[0][0], *LAYERS[1][:2]], "only what had begun"
    assert not cache.snapshot().predicted
    assert_consistent(cache)


def test_a_hold_ends_it(make):
    gate = Gate(*LAYERS[1][:2])
    cache = make(64, gate, read_threads=1)
    prefill(cache, LAYERS[0][:2])
    prefill(cache, LAYERS[0][:2], LAYERS[1][:4])
    gate.wait_for(LAYERS[1][1])
    with cache.view(LAYERS[0][0].bank_key, 16).try_hold([0, 1], me()):
        assert not cache.snapshot().predicted
        gate.open()
        settle(cache)
    assert resident(cache, LAYERS[1]) == LAYERS[1][:2], "only what had begun"


def test_closing_the_cache_ends_it(make):
    cache = make(64, lambda key: time.sleep(0.001))
    with leased(cache, LAYERS[0], phase="prefill", upcoming=ALL[16:]) as lease:
        next(lease)
    cache.close()
    assert set(cache.source.reads) != set(ALL)


def test_a_failed_read_bothers_nobody_before_it_is_asked_for(make):
    cache = make(64, Failing(ReadError("bad sector"), LAYERS[1][0]))
    prefill(cache, LAYERS[0], LAYERS[1][:2])
    settle(cache)
    assert resident(cache, LAYERS[1]) == LAYERS[1][1:2]
    prefill(cache, LAYERS[1])
    assert_consistent(cache)


def test_unknown_keys_are_passed_over(make):
    cache = make(64)
    unknown = LAYERS[1][0]._replace(expert=99)
    prefill(cache, LAYERS[0], [unknown, LAYERS[1][0]])
    settle(cache)
    assert resident(cache, LAYERS[1]) == LAYERS[1][:1]


@pytest.mark.parametrize("eviction", ["lru", "markov"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("slots", [2, 3, 8, 16, 21, 48])
def test_each_expert_is_read_once_in_a_pass(make, slots, ordered, eviction):
    cache = make(slots, eviction=eviction)
    for _ in range(2):
        del cache.source.reads[:]
        walk(cache, ordered=ordered)
        assert len(cache.source.reads) == len(set(cache.source.reads))
        settle(cache)
        assert_consistent(cache)
    assert cache.stats().announced_used == cache.stats().announced_issued > 0


@pytest.mark.parametrize("slots", [2, 8, 21, 48])
def test_what_was_announced_in_vain_costs_no_more_than_its_read(make, slots):
    cache = make(slots)
    for _ in range(3):
        stats = walk(cache, lambda layer, keys: keys[layer::3])
        assert sum(one.requested for one in stats) == sum(len(keys[n::3]) for n, keys in enumerate(LAYERS))
    settle(cache)
    assert_consistent(cache)
    figures = cache.stats()
    assert figures.announced_issued > figures.announced_used
    assert figures.announced_used > 0 or slots < 16, "the likeliest first one was never it"


def test_what_the_pass_still_needs_is_not_evicted_for_it(make):
    """In a second pass the first layers are there already, and what comes after them takes the place of none."""
    cache = make(32, eviction="lru")
    prefill(cache, LAYERS[0])
    prefill(cache, LAYERS[1])
    assert len(resident(cache, ALL)) == 32
    prefill(cache, LAYERS[0], ALL[16:])
    settle(cache)
    assert resident(cache, LAYERS[1]) == LAYERS[1]
    assert len(resident(cache, LAYERS[2])) == 4, "in slots of the first layer"


@pytest.mark.parametrize("eviction", ["lru", "lfu", "lfru", "markov"])
def test_what_decoding_warmed_survives_a_prompt(make, eviction):
    cache = make(32, eviction=eviction)
    warm = [layer[n] for layer in LAYERS for n in range(8)]
    for _ in range(3):
        for layer in LAYERS:
            with leased(cache, layer[:8]) as lease:
                list(lease)
    assert resident(cache, warm) == sorted(warm)
    for _ in range(2):
        walk(cache)
        settle(cache)
    # An eighth and the one that is computed with, as for a prefill that announces nothing.
    assert len(resident(cache, warm)) >= 32 - 4 - 2


def test_a_decode_step_of_another_thread_takes_the_room_it_needs(make):
    cache = make(16)
    prefill(cache, LAYERS[0][:4], LAYERS[1])
    settle(cache)

    def decode():
        with leased(cache, LAYERS[2]) as lease:
            assert lease.together
            for key, tensors in dict(lease).items():
                assert_is(key, SMALL, tensors)

    run_threads(decode)
    assert resident(cache, ALL) == LAYERS[2]


def test_another_scan_takes_what_a_consumer_left_behind_and_hardly_what_is_warm(make):
    cache = make(16, eviction="lru")
    for _ in range(2):
        with leased(cache, LAYERS[3][:14]) as lease:
            list(lease)
    other = Consumer()
    prefill(cache, [], LAYERS[1], consumer=other)
    settle(cache)
    assert len(resident(cache, LAYERS[1])) == 2
    prefill(cache, LAYERS[0])
    # One of each, or both of what was left behind: that depends on how soon it gives back what it has consumed.
    assert len(resident(cache, LAYERS[3][:14])) >= 13
    assert len(resident(cache, LAYERS[1])) <= 1


@pytest.mark.parametrize("slots", [2, 5, 20])
def test_threads_scan_and_decode_at_once(make, slots):
    cache = make(slots, lambda key: time.sleep(0.0002))
    barrier = threading.Barrier(3)

    def prompts(ordered):
        barrier.wait(PATIENCE_S)
        for _ in range(3):
            walk(cache, ordered=ordered)

    def decode():
        barrier.wait(PATIENCE_S)
        for step in range(60):
            keys = [LAYERS[step % 4][(step * 5 + n * 3) % 16] for n in range(4)]
            with leased(cache, keys) as lease:
                for key, tensors in lease:
                    assert_is(key, SMALL, tensors)

    run_threads(lambda: prompts(False), lambda: prompts(True), decode)
    settle(cache)
    assert_consistent(cache)


def test_what_is_announced_never_keeps_a_scan_from_its_own_room(tmp_path):
    big, small = keys_of(2, 0), keys_of(48, 1)
    source = TinySource(tmp_path, dict.fromkeys(big, LARGE) | dict.fromkeys(small, SMALL))
    with ExpertCache(source, capacity=32 * SMALL.nbytes, eviction="lru") as cache:
        with leased(cache, small[:28]) as lease:
            list(lease)
        with leased(cache, small[28:32], phase="prefill") as lease:
            list(lease)
        with leased(cache, big, phase="prefill", upcoming=small) as lease:
            assert [key for key, _ in lease] == big


def test_an_announcement_protects_a_part_of_what_is_there(make):
    cache = make(32)
    for keys in LAYERS[:2]:
        with leased(cache, keys) as lease:
            list(lease)
    other = Consumer()
    prefill(cache, [], [LAYERS[2][0], *LAYERS[0], *LAYERS[1]], consumer=other)
    settle(cache)
    protected = set().union(*cache.snapshot().predicted)
    assert len(protected) == 24
