"""The cache as a whole: its budget, its figures, its end."""

import gc
import os
import pickle
import threading

import pytest

from coterie.cache import ExpertCache
from coterie.errors import ChecksumError, MemoryBudgetError, ReadError, UsageError
from coterie.eviction import LruPolicy

from .sources import (
    LARGE,
    PATIENCE_S,
    SMALL,
    Gate,
    TinySource,
    assert_consistent,
    assert_is,
    keys_of,
    leased,
    me,
    predict,
)

KEYS = keys_of(9)


def use(cache, source, keys):
    with leased(cache, keys) as lease:
        for key, tensors in lease:
            assert_is(key, source.layout(key), tensors)
    return lease.stats


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("coterie-read")]


class TestBudget:
    def test_below_two_of_the_largest_it_says_what_would_do(self, tmp_path):
        source = TinySource.mixed(tmp_path, 9)
        minimum = 2 * LARGE.nbytes
        with pytest.raises(MemoryBudgetError, match=str(minimum)) as caught:
            ExpertCache(source, capacity=minimum - 1)
        assert (caught.value.budget, caught.value.minimum) == (minimum - 1, minimum)
        with ExpertCache(source, capacity=minimum) as cache:
            assert cache.minimum == cache.capacity == minimum
            use(cache, source, KEYS)

    def test_more_than_everything_is_clipped_to_that(self, tmp_path):
        source = TinySource.mixed(tmp_path, 9)
        with ExpertCache(source, capacity=2**60) as cache:
            assert cache.capacity == cache.total_bytes == source.total()
            use(cache, source, KEYS)
            assert use(cache, source, KEYS).hits == 9
            assert cache.stats().resident_bytes == source.total()

    def test_a_source_with_one_expert_needs_one_slot(self, tmp_path):
        source = TinySource.uniform(tmp_path, 1)
        with ExpertCache(source, capacity=SMALL.nbytes) as cache:
            use(cache, source, KEYS[:1])

    def test_an_expert_added_later_is_found_and_the_room_grows(self, tmp_path):
        source = TinySource.uniform(tmp_path, 2)
        with ExpertCache(source, capacity=4 * SMALL.nbytes) as cache:
            use(cache, source, KEYS[:2])
            with open(source.path, "ab") as file:
                source._layouts[KEYS[2]] = SMALL
                source._extents[KEYS[2]] = tuple(source._write(file, KEYS[2], SMALL))
            use(cache, source, KEYS[:3])
            assert cache.capacity == 3 * SMALL.nbytes
            assert use(cache, source, KEYS[:3]).hits == 3

    def test_an_added_expert_too_large_for_the_budget_is_refused(self, tmp_path):
        source = TinySource.uniform(tmp_path, 3)
        with ExpertCache(source, capacity=2 * SMALL.nbytes) as cache:
            source._layouts[KEYS[3]] = LARGE
            with pytest.raises(MemoryBudgetError) as caught:
                leased(cache, [KEYS[3]])
            assert caught.value.minimum == 2 * LARGE.nbytes

    @pytest.mark.parametrize("setting", ["read_threads", "read_nbytes"])
    def test_settings_out_of_range(self, tmp_path, setting):
        with pytest.raises(UsageError, match=setting):
            ExpertCache(TinySource.uniform(tmp_path, 2), capacity=2**20, **{setting: 0})

    def test_an_unknown_policy(self, tmp_path):
        with pytest.raises(UsageError, match="Did you mean 'lfu'"):
            ExpertCache(TinySource.uniform(tmp_path, 2), capacity=2**20, eviction="lfuu")


def test_opening_reads_nothing(tmp_path):
    source = TinySource.uniform(tmp_path, 9)
    with ExpertCache(source, capacity=2**30) as cache:
        assert cache.stats().bytes_read == 0
    assert source.reads == []


def test_figures_add_up(tmp_path):
    source = TinySource.uniform(tmp_path, 9)
    with ExpertCache(source, capacity=4 * SMALL.nbytes, eviction=LruPolicy()) as cache:
        leases = [use(cache, source, KEYS[n : n + 3]) for n in range(6)]
        stats = cache.stats()
    assert stats.requests == 18 == sum(lease.requested for lease in leases)
    assert stats.hits == sum(lease.hits for lease in leases) == 10
    assert stats.misses == sum(lease.misses for lease in leases) == 8
    assert stats.bytes_read == sum(lease.bytes_read for lease in leases) == 8 * SMALL.nbytes
    assert stats.evictions == sum(lease.evictions for lease in leases) == 4
    assert stats.resident_count == 4
    assert stats.resident_bytes == stats.capacity
    assert stats.hit_rate == 10 / 18


@pytest.mark.parametrize("kind", ["aligned", "odd", "decoded"])
@pytest.mark.parametrize("direct", [True, False])
def test_every_kind_of_source_and_size_under_one_budget(tmp_path, kind, direct):
    source = TinySource.mixed(tmp_path, 9, kind=kind)
    with ExpertCache(source, capacity=3 * LARGE.nbytes, verify_reads=True, direct=direct) as cache:
        for step in range(12):
            use(cache, source, [KEYS[(step * 4 + n) % 9] for n in range(5)])
        assert_consistent(cache)


def test_verified_reads_find_a_flipped_bit(tmp_path):
    source = TinySource.uniform(tmp_path, 3)
    source.path.write_bytes(source.path.read_bytes()[:-1] + b"\x01")
    with ExpertCache(source, capacity=2**20, verify_reads=True) as cache:
        use(cache, source, KEYS[:2])
        with pytest.raises(ChecksumError):
            use(cache, source, KEYS[2:3])


def test_a_truncated_file_is_an_error_that_names_the_expert(tmp_path):
    source = TinySource.uniform(tmp_path, 3)
    os.truncate(source.path, 2 * SMALL.nbytes + 100)
    with ExpertCache(source, capacity=2**20) as cache:
        with pytest.raises(ReadError) as caught:
            use(cache, source, KEYS[:3])
        assert caught.value.key == KEYS[2]


class TestEnd:
    def test_closing_ends_threads_and_files_and_further_use_is_an_error(self, tmp_path):
        before = set(reading_threads())
        source = TinySource.uniform(tmp_path, 4)
        cache = ExpertCache(source, capacity=2**20)
        view = cache.view(KEYS[0].bank_key, 4)
        use(cache, source, KEYS[:4])
        mine = set(reading_threads()) - before
        assert mine
        cache.close()
        cache.close()
        assert not any(thread.is_alive() for thread in mine)
        for attempt in (
            lambda: leased(cache, KEYS[:1]),
            lambda: view.try_hold([0], me()),
            lambda: predict(cache, KEYS[:1]),
            lambda: cache.warm(KEYS[:1]),
            cache.__enter__,
        ):
            with pytest.raises(UsageError, match="closed"):
                attempt()

    def test_closing_wakes_who_waits(self, tmp_path):
        gate = Gate(KEYS[0])
        source = TinySource.uniform(tmp_path, 2, before_read=gate)
        cache = ExpertCache(source, capacity=2**20)
        problems = []

        def wait():
            with pytest.raises(UsageError, match="closed"):
                use(cache, source, KEYS[:1])
            problems.append("woken")
            gate.open()

        thread = threading.Thread(target=wait)
        thread.start()
        gate.wait_for(KEYS[0])
        cache.close()
        thread.join(PATIENCE_S)
        assert problems == ["woken"]

    def test_tensors_of_an_open_hold_survive_closing(self, tmp_path):
        source = TinySource.uniform(tmp_path, 2)
        cache = ExpertCache(source, capacity=2**20)
        use(cache, source, KEYS[:2])
        with cache.view(KEYS[0].bank_key, 2).try_hold([0, 1], me()) as held:
            cache.close()
            for key, tensors in zip(KEYS, held.tensors, strict=False):
                assert_is(key, SMALL, tensors)

    def test_a_forgotten_cache_ends_its_threads(self, tmp_path):
        before = set(reading_threads())
        source = TinySource.uniform(tmp_path, 2)
        cache = ExpertCache(source, capacity=2**20)
        use(cache, source, KEYS[:2])
        mine = set(reading_threads()) - before
        assert mine
        del cache
        gc.collect()
        for thread in mine:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def test_it_cannot_be_pickled(self, tmp_path):
        source = TinySource.uniform(tmp_path, 2)
        with ExpertCache(source, capacity=2**20) as cache, pytest.raises(UsageError, match="pickled"):
            pickle.dumps(cache)


def test_it_says_what_would_have_to_be_read(tmp_path):
    gate = Gate(KEYS[0])
    source = TinySource.mixed(tmp_path, 9, before_read=gate)
    with ExpertCache(source, capacity=source.total()) as cache:
        assert cache.to_read(KEYS[:2]) == {key: source.layout(key).nbytes for key in KEYS[:2]}
        with leased(cache, KEYS[:1]) as lease:
            # What is on its way is not to be read again.
            gate.wait_for(KEYS[0])
            assert list(cache.to_read(KEYS[:2])) == [KEYS[1]]
            gate.open()
            list(lease)
        assert list(cache.to_read(KEYS[:3])) == [KEYS[1], KEYS[2]]
        assert cache.stats().misses == 1
    with pytest.raises(UsageError, match="closed"):
        cache.to_read(KEYS[:1])
