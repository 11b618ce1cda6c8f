"""What is worth having is read when nothing else is, and takes nobody's place who was of use."""

import random
import threading

import pytest

from coterie.cache import ExpertCache
from coterie.errors import UsageError
from coterie.eviction import POLICY_NAMES, TrustPolicy

from .sources import LARGE, SMALL, Gate, TinySource, assert_consistent, assert_is, keys_of, leased, wait_until

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


def use(cache, keys, **options):
    with leased(cache, keys, **options) as lease:
        for key, tensors in lease:
            assert_is(key, SMALL, tensors)
    return lease.stats


def warm(cache, keys, **options):
    """Warms, and waits until all has been read or given up."""
    cache.warm(keys, **options)
    cache.quiesce()


def resized(cache, slots):
    """Not in the main thread: there it is refused."""
    thread = threading.Thread(target=lambda: cache.resize(slots * SMALL.nbytes))
    thread.start()
    thread.join()


def resident(cache):
    return [key for key in KEYS if key in cache]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_the_most_valuable_are_read_until_the_share_is_full(make, policy):
    cache = make(8, eviction=policy)
    warm(cache, [*reversed(KEYS), KEYS[0]], share=0.5)
    assert resident(cache) == KEYS[8:]
    assert use(cache, KEYS[8:10]).hits == 2
    stats = cache.stats()
    assert (stats.warmed, stats.warmed_used, stats.warmed_bytes) == (4, 2, 4 * SMALL.nbytes)
    assert (stats.prefetch_issued, stats.prefetch_used, stats.prefetch_bytes) == (0, 0, 0)
    assert stats.bytes_read == 4 * SMALL.nbytes


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_the_least_valuable_leave_first_and_what_was_used_after_them(make, policy):
    cache = make(4, eviction=policy, read_threads=1)
    warm(cache, [KEYS[3], KEYS[1], KEYS[2], KEYS[0]], share=1)
    use(cache, KEYS[2:3])
    use(cache, KEYS[4:5])
    assert resident(cache) == [KEYS[1], KEYS[2], KEYS[3], KEYS[4]]
    use(cache, KEYS[5:6])
    assert resident(cache) == [KEYS[2], KEYS[3], KEYS[4], KEYS[5]]
    assert cache.stats().prefetch_wasted == 0


def test_nothing_that_decoding_has_used_makes_room(make):
    cache = make(4)
    use(cache, KEYS[:4])
    warm(cache, KEYS[4:8], share=1)
    assert resident(cache) == KEYS[:4]
    assert cache.stats().warmed == 0


def test_what_only_a_scan_has_used_makes_room(make):
    cache = make(4)
    use(cache, KEYS[:2])
    use(cache, KEYS[2:6], phase="prefill")
    warm(cache, KEYS[6:10], share=1)
    assert set(KEYS[:2]) <= set(resident(cache))
    assert cache.stats().warmed == 2


def test_what_a_scan_reads_of_them_stays(make):
    cache = make(8)
    cache.warm(KEYS[3:6], share=0.5)
    use(cache, KEYS, phase="prefill")
    use(cache, KEYS, phase="prefill")
    assert set(KEYS[3:6]) <= set(resident(cache))


def test_demand_goes_first(make):
    gate = Gate(KEYS[0])
    cache = make(6, gate, read_threads=2)
    other = threading.Thread(target=use, args=(cache, KEYS[:1]))
    other.start()
    gate.wait_for(KEYS[0])
    cache.warm(KEYS[1:4])
    assert cache.stats().warmed == 0
    gate.open()
    other.join()
    wait_until(lambda: cache.stats().warmed == 3)


def test_another_set_takes_the_place_of_what_of_the_first_was_never_used(make):
    cache = make(4)
    warm(cache, KEYS[:4], share=1)
    use(cache, KEYS[:1])
    warm(cache, KEYS[6:9], share=1)
    assert resident(cache) == [KEYS[0], *KEYS[6:9]]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_pinned_ones_outlast_everything_that_can_leave_instead(make, policy):
    cache = make(5, eviction=policy)
    warm(cache, KEYS[:4], share=0.8, pinned_nbytes=2 * SMALL.nbytes)
    assert cache.stats().pinned == 2
    for _ in range(3):
        for start in range(2, 11):
            use(cache, KEYS[start : start + 2])
        use(cache, KEYS, phase="prefill")
    assert set(KEYS[:2]) <= set(resident(cache))
    cache.warm(())
    use(cache, KEYS[4:9])
    assert resident(cache) == KEYS[4:9]


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_what_is_to_stay_stays_until_it_need_not(make, policy):
    cache = make(6, eviction=policy)
    use(cache, KEYS[4:10])
    cache.keep(KEYS[:4], leaving=4 * SMALL.nbytes)
    cache.quiesce()
    assert set(KEYS[:2]) <= set(resident(cache))
    warm(cache, KEYS[9:], share=1, pinned_nbytes=SMALL.nbytes)
    assert cache.stats().pinned == 3
    for start in range(2, 11):
        use(cache, KEYS[start : start + 2])
    use(cache, KEYS[2:], phase="prefill")
    assert {*KEYS[:2], KEYS[9]} <= set(resident(cache))
    assert use(cache, KEYS[:2]).misses == 0
    cache.keep(())
    assert cache.stats().pinned == 1
    cache.warm(())
    use(cache, KEYS[4:10])
    assert resident(cache) == KEYS[4:10]


def test_what_is_to_stay_is_read_first_and_never_takes_the_last_two_slots(make):
    cache = make(4)
    cache.keep([*keys_of(1, layer=7), *KEYS[:4]])
    cache.quiesce()
    assert cache.stats().pinned == 2
    assert resident(cache) == KEYS[:2]
    assert use(cache, KEYS[4:8]).misses == 4
    with pytest.raises(UsageError, match="-1"):
        cache.keep(KEYS, leaving=-1)


def test_what_is_to_stay_follows_the_capacity_and_has_what_pins_leave(make):
    cache = make(8)
    cache.keep(KEYS[:6], leaving=3 * SMALL.nbytes)
    assert cache.stats().pinned == 5
    resized(cache, 5)
    assert cache.stats().pinned == 2
    assert not cache.keeps_unread
    resized(cache, 8)
    cache.quiesce()
    # They are read when somebody says that the capacity stays as it is.
    assert cache.stats().pinned == 5
    assert cache.keeps_unread
    cache.keep(KEYS[:6], leaving=3 * SMALL.nbytes)
    cache.quiesce()
    assert not cache.keeps_unread
    assert set(KEYS[:5]) <= set(resident(cache))
    cache.keep(())
    cache.warm(KEYS[8:], share=1, pinned_nbytes=2 * SMALL.nbytes)
    cache.keep(KEYS[:6], leaving=3 * SMALL.nbytes)
    assert cache.stats().pinned == 5


def test_what_was_worth_having_is_not_read_again_for_what_is_to_stay(make):
    cache = make(6)
    warm(cache, KEYS[6:10], share=1)
    use(cache, KEYS[:6])
    before = cache.stats().warmed
    cache.keep(KEYS[:1])
    cache.keep(())
    cache.quiesce()
    assert cache.stats().warmed == before


def test_pinned_ones_take_the_place_of_what_was_used(make):
    cache = make(4)
    use(cache, KEYS[:4])
    warm(cache, KEYS[6:8], share=1, pinned_nbytes=2 * SMALL.nbytes)
    assert set(KEYS[6:8]) <= set(resident(cache))


def test_pinned_ones_leave_where_nothing_else_can(make):
    cache = make(4)
    warm(cache, KEYS[:4], share=1, pinned_nbytes=100 * SMALL.nbytes)
    # Two slots are never pinned; four experts that must stay together still find room.
    assert cache.stats().pinned == 2
    assert use(cache, KEYS[4:8]).misses == 4
    assert resident(cache) == KEYS[4:8]


def test_everything_can_be_pinned_where_everything_fits(make):
    cache = make(12)
    warm(cache, KEYS, share=1, pinned_nbytes=100 * SMALL.nbytes)
    assert cache.stats().pinned == 12
    assert cache.all_resident


def test_unknown_ones_are_passed_over_and_impossible_settings_refused(make):
    cache = make(4)
    warm(cache, [*keys_of(1, layer=7), KEYS[0]])
    assert resident(cache) == KEYS[:1]
    for options in ({"share": 1.1}, {"share": -0.1}, {"pinned_nbytes": -1}):
        with pytest.raises(UsageError, match="cannot be"):
            cache.warm(KEYS, **options)
    cache.close()
    with pytest.raises(UsageError, match="closed"):
        cache.warm(KEYS)


def test_only_a_policy_that_goes_by_it_is_told_what_to_expect(make):
    plain = make(3)
    plain.expect_use({KEYS[0]: 0.9})
    told = make(3, eviction=TrustPolicy({}))
    told.expect_use(dict.fromkeys(KEYS, 0.0) | {KEYS[0]: 0.9})
    for cache in (plain, told):
        for key in (*KEYS[:3], *KEYS[1:3]):
            use(cache, [key])
        use(cache, KEYS[3:4])
    assert KEYS[0] in told
    assert KEYS[0] not in plain


@pytest.mark.parametrize("seed", range(3))
def test_threads_that_lease_scan_and_warm_end_and_keep_the_budget(tmp_path, seed):
    draw = random.Random(seed)
    keys = keys_of(10)
    source = TinySource(tmp_path, {key: draw.choice([SMALL, LARGE]) for key in keys})
    with ExpertCache(source, capacity=6 * LARGE.nbytes, read_threads=2) as cache:

        def work(number):
            mine = random.Random(100 * seed + number)
            for _ in range(60):
                if mine.random() < 0.2:
                    cache.warm(mine.sample(keys, 6), pinned_nbytes=mine.choice([0, LARGE.nbytes, 4 * LARGE.nbytes]))
                chosen = mine.sample(keys, mine.randint(1, 6))
                with leased(cache, chosen, phase=mine.choice(["decode", "prefill"])) as lease:
                    for key, tensors in lease:
                        assert_is(key, source.layout(key), tensors)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        assert_consistent(cache)
