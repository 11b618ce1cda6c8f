"""Memory that is found before there is a cache is what the cache begins with."""

import threading

import pytest

from coterie.cache import EarlyMemory, ExpertCache, growth
from coterie.cache.arena import KERNEL_TAKES_PAGES_BACK, AddressRange, SlotArena
from coterie.cache.growth import PIECE, Growth
from coterie.cache.scheduler import Scheduler
from coterie.plan.new_memory import SLOW

from .sources import LARGE, PATIENCE_S, SMALL, TinySource, assert_consistent, assert_is, keys_of, leased, wait_until

PAGE = 4096
MIB = 2**20

pytestmark = pytest.mark.skipif(not KERNEL_TAKES_PAGES_BACK, reason="every slot is a mapping of its own")


class Touch:
    """Finds memory at a given speed, as far as it is let through."""

    def __init__(self, bandwidth, pieces=None, error=None):
        self.bandwidth = bandwidth
        self.touched = 0
        self._left = threading.Semaphore(10**6 if pieces is None else pieces)
        self._error = error

    def __call__(self, memory):
        if self._error is not None and not self._left.acquire(blocking=False):
            raise self._error
        memory[::PAGE] = bytes(len(memory[::PAGE]))
        self.touched += memory.nbytes
        return memory.nbytes / self.bandwidth


def found(nbytes, bandwidth=SLOW / 4, **options):
    """All of it, or as much as there is."""
    early = EarlyMemory(nbytes, Touch(bandwidth, **options))
    for thread in early._threads:
        thread.join(PATIENCE_S)
    early.stop()
    return early


class Known:
    """Memory of which that much was found."""

    def __init__(self, nbytes, found):
        self.addresses = AddressRange(nbytes)
        self.nbytes = nbytes
        self.found = found


class TestFinding:
    def test_all_that_is_wanted_is_found_and_its_speed_is_known(self):
        early = found(3 * PIECE + PAGE)
        assert early.found == 3 * PIECE + PAGE == early._touch.touched
        assert early.seconds_per_byte == pytest.approx(4 / SLOW)

    def test_it_ends_when_the_block_is_left(self):
        gate, began = threading.Event(), threading.Event()

        def touch(memory):
            began.set()
            assert gate.wait(PATIENCE_S)
            return 0.0

        with EarlyMemory(1000 * PIECE, touch) as early:
            assert began.wait(PATIENCE_S)
            threading.Timer(0.05, gate.set).start()
        assert PIECE <= early.found < 1000 * PIECE
        assert not any(thread.is_alive() for thread in early._threads)
        before = early.found
        early.stop()
        assert early.found == before

    def test_what_cannot_be_found_is_left_to_reads(self):
        early = found(64 * PIECE, pieces=2, error=MemoryError("no more"))
        assert early.found <= 2 * PIECE
        assert early.found % PIECE == 0

    def test_nothing_found_says_nothing_of_the_speed(self):
        early = found(PIECE, pieces=0, error=OSError("none"))
        assert (early.found, early.seconds_per_byte) == (0, None)


class TestArena:
    def test_slots_that_have_memory_are_handed_out_first(self):
        arena = SlotArena(8 * PAGE)
        memory = Known(8 * PAGE, 5 * PAGE + 100)
        memory.addresses.memory[memory.addresses.start : memory.addresses.start + 5 * PAGE] = b"x" * 5 * PAGE
        arena.adopt(PAGE, memory)
        assert (arena.committed, arena.in_use) == (5 * PAGE, 0)
        slots = [arena.acquire(PAGE) for _ in range(8)]
        assert [slot.record[0] for slot in slots] == [ord("x")] * 5 + [0] * 3
        assert arena.new_slots == 3
        assert arena.acquire(PAGE) is None
        assert len({slot.offset for slot in slots}) == 8

    def test_what_is_more_than_the_capacity_is_given_back(self):
        arena = SlotArena(2 * PAGE)
        memory = Known(6 * PAGE, 6 * PAGE)
        start = memory.addresses.start
        memory.addresses.memory[start : start + 6 * PAGE] = b"x" * 6 * PAGE
        arena.adopt(PAGE, memory)
        assert arena.committed == 2 * PAGE
        assert memory.addresses.memory[start : start + 2 * PAGE] == b"x" * 2 * PAGE
        assert not any(memory.addresses.memory[start + 2 * PAGE : start + 6 * PAGE])
        arena.resize(7 * PAGE)
        assert len([arena.acquire(PAGE) for _ in range(7)]) == 7
        assert arena.committed == 7 * PAGE

    def test_another_size_takes_it_back(self):
        arena = SlotArena(4 * PAGE)
        arena.adopt(PAGE, Known(4 * PAGE, 4 * PAGE))
        assert arena.acquire(3 * PAGE).nbytes == 3 * PAGE
        assert (arena.committed, arena.in_use) == (4 * PAGE, 3 * PAGE)
        assert arena.acquire(PAGE) is not None
        assert arena.acquire(PAGE) is None


class TestGrowth:
    def grown_on(self, bandwidth):
        arena = SlotArena(128 * MIB)
        arena.adopt(MIB, Known(128 * MIB, 100 * MIB))
        growth = Growth(arena, lambda memory: 0.0, waited=lambda: 0.0)
        growth.go_on(None if bandwidth is None else 1 / bandwidth, MIB)
        return growth

    def test_where_memory_was_slow_the_arena_is_owed_what_it_lacks(self):
        growth = self.grown_on(SLOW / 2)
        assert growth.goes_on
        count = 0
        while (slot := growth.begin()) is not None:
            growth.end(slot, slot.nbytes * 2 / SLOW)
            count += 1
        assert count == 28
        assert growth.is_slow
        assert not growth.goes_on

    @pytest.mark.parametrize("bandwidth", [2 * SLOW, None])
    def test_elsewhere_it_comes_with_reads(self, bandwidth):
        growth = self.grown_on(bandwidth)
        assert not growth.is_slow
        assert not growth.is_owed
        assert not growth.goes_on


@pytest.fixture
def make(tmp_path, monkeypatch):
    caches = []
    monkeypatch.setattr(growth, "QUIET_S", 0.01)

    def make(slots, early, layouts=None, quiet=True):
        touch = Touch(SLOW / 4)
        if not quiet:
            monkeypatch.setattr(Scheduler, "_is_quiet", lambda self: False)
        monkeypatch.setattr("coterie.cache.residency.native_touch", lambda: touch)
        source = TinySource(tmp_path, layouts or dict.fromkeys(keys_of(32), SMALL))
        caches.append(ExpertCache(source, capacity=slots * SMALL.nbytes, early=early))
        caches[-1].source = source
        return caches[-1]

    yield make
    for cache in caches:
        cache.close()


def use(cache, keys):
    for key in keys:
        with leased(cache, [key]) as lease:
            for got, tensors in lease:
                assert_is(got, cache.source.layout(got), tensors)


class TestCache:
    def test_it_begins_with_what_was_found(self, make):
        cache = make(16, found(16 * SMALL.nbytes, bandwidth=10 * SLOW))
        assert cache.stats().committed_bytes == cache.capacity
        use(cache, keys_of(32) * 2)
        stats = cache.stats()
        assert stats.new_slots == 0
        assert stats.resident_bytes == cache.capacity
        assert not cache.snapshot().memory_owed
        assert_consistent(cache)

    def test_the_rest_is_found_before_anybody_asks(self, make):
        cache = make(16, partly_found(16 * SMALL.nbytes, 5 * SMALL.nbytes))
        wait_until(lambda: cache.stats().committed_bytes == cache.capacity)
        wait_until(lambda: not cache.snapshot().memory_owed)
        use(cache, keys_of(32))
        assert_consistent(cache)

    def test_a_processor_is_wanted_while_memory_is_owed_and_consumers_wait_for_reads(self, make, monkeypatch):
        cache = make(16, partly_found(16 * SMALL.nbytes, 5 * SMALL.nbytes), quiet=False)
        clock = iter(range(100))
        monkeypatch.setattr("coterie.cache.scheduler.time.monotonic", lambda: next(clock) * 10.0)
        counters = cache._counters
        cache.wants_processor()
        counters.wait_s += 9.0
        assert cache.wants_processor()
        assert not cache.wants_processor()
        counters.wait_s += 0.5
        assert not cache.wants_processor()

    def test_experts_of_several_sizes(self, make):
        layouts = {key: LARGE if key.expert % 4 == 3 else SMALL for key in keys_of(32)}
        cache = make(20, partly_found(20 * SMALL.nbytes, 20 * SMALL.nbytes), layouts)
        use(cache, keys_of(32) * 3)
        assert cache.stats().committed_bytes <= cache.capacity
        assert_consistent(cache)


def partly_found(nbytes, count):
    """Memory of which that much was found, slowly."""
    early = found(nbytes)
    early.found = count
    early._seconds = count * 4 / SLOW
    return early
