"""What a thread will probably ask for is read ahead, and changes no result."""

import threading

import pytest

from coterie.cache import ExpertCache, ReadTimes
from coterie.errors import ReadError, UsageError

from .sources import (
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
    predict,
    run_threads,
    wait_until,
)

KEYS = keys_of(12)


class ToldWhenRead(TinySource):
    """One whose reads are told of when they begin, and not when they are prepared."""

    def extents(self, key):
        return None

    def read_into(self, key, record):
        self._note(key)
        return super().read_into(key, record)


@pytest.fixture
def make(tmp_path):
    caches = []

    def make(slots, before_read=None, **options):
        source = ToldWhenRead.uniform(tmp_path, 12, before_read=before_read, kind="decoded")
        caches.append(ExpertCache(source, capacity=slots * SMALL.nbytes, **options))
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def use(cache, keys):
    with leased(cache, keys) as lease:
        for key, tensors in lease:
            assert_is(key, SMALL, tensors)
    return lease.stats


def settle(cache, count):
    """Waits until all that is expected has been read or given up: so many reads for predictions in all."""
    assert not cache.quiesce().loading
    assert cache.stats().prefetch_issued >= count


def considered(cache):
    """Waits until the reading threads have looked at what they were told of, whatever is under way."""
    wait_until(lambda: not cache.snapshot().undecided)
    return cache.snapshot()


def test_a_right_prediction_makes_a_later_lease_a_hit(make):
    cache = make(8)
    predict(cache, KEYS[:3])
    settle(cache, 3)
    stats = use(cache, KEYS[:3])
    assert (stats.hits, stats.bytes_read) == (3, 0)
    stats = cache.stats()
    assert (stats.prefetch_issued, stats.prefetch_used, stats.prefetch_wasted) == (3, 3, 0)
    assert stats.bytes_read == 3 * SMALL.payload_nbytes


def test_a_wrong_prediction_is_counted_as_wasted(make):
    cache = make(4)
    predict(cache, KEYS[:2])
    settle(cache, 2)
    use(cache, KEYS[2:6])
    assert cache.stats().prefetch_wasted == 2
    assert cache.stats().prefetch_used == 0


def test_a_lease_joins_a_prefetch_on_its_way(make):
    gate = Gate(KEYS[0])
    cache = make(4, gate)
    predict(cache, KEYS[:1])
    gate.wait_for(KEYS[0])
    with leased(cache, KEYS[:1]) as lease:
        gate.open()
        assert [key for key, _ in lease] == KEYS[:1]
    assert gate.arrived == KEYS[:1]
    assert cache.stats().prefetch_used == 1


def test_it_never_evicts_what_is_leased(make):
    cache = make(4, eviction="lru")
    with leased(cache, KEYS[:4]) as lease:
        collected = dict(lease)
        predict(cache, KEYS[4:])
        cache.quiesce()
        for key, tensors in collected.items():
            assert_is(key, SMALL, tensors)
        assert cache.stats().evictions == 0


def test_demand_goes_first_and_predictions_leave_a_thread_free(make):
    gate = Gate(*KEYS[:4])
    cache = make(8, gate, read_threads=2)
    predict(cache, KEYS[:4])
    gate.wait_for(KEYS[0])
    use(cache, KEYS[8:12])
    # With two threads only one prefetch is under way at a time, so demand was read at once.
    assert gate.arrived[0] == KEYS[0]
    assert set(gate.arrived[1:]) == set(KEYS[8:12])
    gate.open()


def test_reading_threads_are_not_told_of_what_they_cannot_begin(make):
    gate = Gate(*KEYS[:4])
    cache = make(8, gate, read_threads=1)
    predict(cache, KEYS[:3])
    gate.wait_for(KEYS[0])
    # One is being read and one is ready: there is no room for a third.
    wait_until(lambda: cache.snapshot().prepared == 1 and not cache.snapshot().undecided)
    told = []
    notify = cache._scheduler._readers.notify
    cache._scheduler._readers.notify = lambda: (told.append(threading.current_thread().name), notify())
    predict(cache, KEYS[1:4])
    assert not [name for name in told if not name.startswith("coterie-read")]
    gate.open()
    settle(cache, 4)
    assert set(gate.arrived) == set(KEYS[:4])


def test_a_failed_prefetch_bothers_nobody(make):
    cache = make(4, Failing(ReadError("bad sector"), KEYS[0]))
    predict(cache, KEYS[:1])
    settle(cache, 1)
    assert KEYS[0] not in cache
    use(cache, KEYS[:1])
    assert_consistent(cache)


def test_unknown_and_resident_keys_are_passed_over(make):
    cache = make(4)
    use(cache, KEYS[:1])
    predict(cache, [KEYS[0], KEYS[0]._replace(expert=99)])
    assert cache.stats().prefetch_issued == 0


@pytest.mark.parametrize("slots", [2, 4])
def test_results_are_the_same_whatever_was_expected(make, slots):
    cache = make(slots)
    for step in range(40):
        predict(cache, [KEYS[(step * 5 + n) % 12] for n in range(4)])
        use(cache, [KEYS[(step * 7 + n) % 12] for n in range(5)])
    settle(cache, 0)
    assert_consistent(cache)


def test_what_is_expected_is_read_in_order_of_likelihood(make):
    gate = Gate(KEYS[3])
    cache = make(8, gate, read_threads=1)
    predict(cache, [KEYS[3], KEYS[1], KEYS[2]])
    gate.wait_for(KEYS[3])
    gate.open()
    settle(cache, 3)
    assert gate.arrived == [KEYS[3], KEYS[1], KEYS[2]]
    assert use(cache, [KEYS[1], KEYS[3]]).hits == 2
    stats = cache.stats()
    assert (stats.prefetch_hinted, stats.prefetch_issued, stats.prefetch_used, stats.prefetch_in_time) == (3, 3, 2, 2)
    assert stats.prefetch_bytes == stats.bytes_read == 3 * SMALL.payload_nbytes


def test_letting_go_of_a_hold_is_no_request(make):
    gate = Gate(KEYS[1])
    cache = make(8, gate, read_threads=1)
    use(cache, KEYS[:1])
    held = cache.view(KEYS[0].bank_key, 12).try_hold([0], me())
    predict(cache, KEYS[1:4])
    gate.wait_for(KEYS[1])
    held.release()
    gate.open()
    settle(cache, 3)
    assert use(cache, KEYS[1:4]).hits == 3


def test_what_was_not_begun_is_dropped_when_something_is_asked_for(make):
    gate = Gate(KEYS[0])
    cache = make(8, gate, read_threads=1)
    predict(cache, KEYS[:4])
    gate.wait_for(KEYS[0])
    with leased(cache, [KEYS[8]]) as lease:
        gate.open()
        assert [key for key, _ in lease] == [KEYS[8]]
    use(cache, KEYS[9:10])
    assert gate.arrived == [KEYS[0], KEYS[8], KEYS[9]], "the three that were not begun never are"
    stats = cache.stats()
    assert (stats.prefetch_hinted, stats.prefetch_issued) == (4, 1)
    assert not cache.snapshot().predicted


def test_what_a_later_prediction_does_not_confirm_is_dropped_even_if_it_was_prepared(make):
    gate = Gate(KEYS[0])
    cache = make(8, gate, read_threads=1)
    predict(cache, KEYS[:4])
    gate.wait_for(KEYS[0])
    wait_until(lambda: cache.snapshot().prepared == 1)
    predict(cache, [KEYS[3], KEYS[8]])
    gate.open()
    settle(cache, 3)
    assert gate.arrived == [KEYS[0], KEYS[3], KEYS[8]], "the first had begun"
    stats = cache.stats()
    assert (stats.prefetch_hinted, stats.prefetch_issued) == (5, 3)
    assert_consistent(cache)


def test_what_is_needed_soonest_is_read_first(make):
    gate = Gate(KEYS[0])
    cache = make(12, gate, read_threads=1)
    predict(cache, KEYS[:1])
    gate.wait_for(KEYS[0])
    cache.predict(KEYS[6:8], consumer=me(), after=1)
    predict(cache, KEYS[:4])
    gate.open()
    settle(cache, 6)
    assert gate.arrived == [*KEYS[:1], *KEYS[1:4], *KEYS[6:8]]


def test_a_request_ends_the_nearest_prediction_and_brings_the_next_one_nearer(make):
    gate = Gate(KEYS[0])
    cache = make(12, gate, read_threads=1)
    predict(cache, KEYS[:3])
    for after in (1, 2):
        cache.predict(KEYS[3 * after : 3 * after + 3], consumer=me(), after=after)
    gate.wait_for(KEYS[0])
    with leased(cache, KEYS[:1]) as lease:
        gate.open()
        assert [key for key, _ in lease] == KEYS[:1]
        settle(cache, 7)
        assert set(cache.snapshot().predicted) == {frozenset(KEYS[3:6]), frozenset(KEYS[6:9])}
    assert gate.arrived == [KEYS[0], *KEYS[3:9]]
    assert use(cache, KEYS[3:6]).hits == use(cache, KEYS[6:9]).hits == 3
    assert not cache.snapshot().predicted


def test_an_exception_ends_all_of_them(make):
    cache = make(12)

    def fail():
        with leased(cache, KEYS[:1]):
            for after in (0, 1):
                cache.predict(KEYS[3:6], consumer=me(), after=after)
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fail()
    assert not cache.snapshot().predicted


def test_nothing_is_predicted_of_what_is_past(make):
    with pytest.raises(UsageError, match="after=-1"):
        make(4).predict(KEYS, consumer=me(), after=-1)


def test_a_hold_drops_it_too(make):
    gate = Gate(KEYS[0])
    cache = make(8, gate, read_threads=1)
    use(cache, KEYS[8:9])
    predict(cache, KEYS[:3])
    gate.wait_for(KEYS[0])
    with cache.view(KEYS[0].bank_key, 12).try_hold([8], me()) as held:
        assert_is(KEYS[8], SMALL, held.tensors[0])
        gate.open()
        settle(cache, 1)
    use(cache, KEYS[9:10])
    assert gate.arrived == [KEYS[8], KEYS[0], KEYS[9]]


def test_nothing_is_predicted_while_a_demanded_read_is_under_way(make):
    gate = Gate(KEYS[0])
    cache = make(8, gate, read_threads=4)
    with leased(cache, KEYS[:1]) as lease:
        gate.wait_for(KEYS[0])
        predict(cache, KEYS[4:7])
        assert set(considered(cache).loading) == {*KEYS[:1], *KEYS[4:7]}
        assert gate.arrived == KEYS[:1], "they are prepared, and no more"
        gate.open()
        next(lease)
        settle(cache, 3)
    assert gate.arrived[0] == KEYS[0]
    assert set(gate.arrived[1:]) == set(KEYS[4:7])


def test_a_prediction_that_is_late_is_joined_and_then_a_demand(make):
    gate = Gate(KEYS[0])
    cache = make(8, gate, read_threads=4)
    predict(cache, KEYS[:1])
    gate.wait_for(KEYS[0])
    with leased(cache, KEYS[:1]) as lease:
        predict(cache, KEYS[4:6])
        considered(cache)
        assert gate.arrived == KEYS[:1], "somebody waits for the first one now"
        gate.open()
        assert [key for key, _ in lease] == KEYS[:1]
        settle(cache, 3)
    stats = cache.stats()
    assert gate.arrived.count(KEYS[0]) == 1
    assert (stats.prefetch_issued, stats.prefetch_used, stats.prefetch_in_time) == (3, 1, 0)


def test_what_is_expected_is_not_evicted_for_another_prediction(make):
    cache = make(4, eviction="lru")
    use(cache, KEYS[:4])
    predict(cache, [KEYS[0], KEYS[1], KEYS[2], KEYS[5]])
    settle(cache, 1)
    assert [key for key in KEYS if key in cache] == [*KEYS[:3], KEYS[5]]
    predict(cache, KEYS[8:12])
    settle(cache, 5)
    # Neither does a prediction take the room of what was predicted beside it.
    assert [key for key in KEYS if key in cache] == KEYS[8:12]


def test_threads_expect_for_themselves(make):
    gate = Gate(KEYS[0])
    cache = make(12, gate, read_threads=1)
    predict(cache, KEYS[:3])
    gate.wait_for(KEYS[0])
    wait_until(lambda: cache.snapshot().prepared == 1)

    def other():
        predict(cache, KEYS[6:8])
        use(cache, KEYS[9:10])

    thread = threading.Thread(target=other)
    thread.start()
    wait_until(lambda: cache.snapshot().leases and cache.snapshot().prepared == 2)
    gate.open()
    thread.join(120)
    settle(cache, 3)
    assert gate.arrived[:2] == [KEYS[0], KEYS[9]]
    assert set(gate.arrived[2:]) == set(KEYS[1:3]), "what the other thread expected is over, this one's is not"


def test_consumers_that_are_gone_are_forgotten(make):
    cache = make(4)
    together = threading.Barrier(100)

    def other():
        together.wait(PATIENCE_S)
        predict(cache, [])

    run_threads(*[other] * 100)
    wait_until(lambda: not cache.snapshot().predicted)


def test_times_of_reads(make):
    gate = Gate(KEYS[0], KEYS[1])
    cache = make(8, gate)
    predict(cache, KEYS[:1])
    gate.wait_for(KEYS[0])
    early = cache.read_times()
    with leased(cache, KEYS[1:2]) as lease:
        gate.wait_for(KEYS[1])
        gate.open()
        list(lease)
    settle(cache, 1)
    times = cache.read_times()
    assert early.demanded_s == 0
    assert times.ahead_s >= early.ahead_s > 0
    assert times.demanded_s > 0
    assert times == ReadTimes(
        demanded_s=cache.read_times().demanded_s, ahead_s=cache.read_times().ahead_s, wait_s=cache.stats().wait_s
    ), "while nothing is read no time is counted"
