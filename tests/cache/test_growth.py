"""Where new memory is slow, misses take used memory, and the arena is given what they did without."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.cache import ExpertCache, growth
from coterie.cache.arena import SlotArena
from coterie.cache.growth import LEAST_CAPACITY, PATIENCE_S, PROBE_EVERY, Grower, Growth
from coterie.plan.new_memory import SLOW

from .sources import LARGE, SMALL, TinySource, assert_consistent, assert_is, keys_of, leased, run_threads, wait_until
from .sources import PATIENCE_S as TEST_PATIENCE_S

MIB = 2**20
PAGE = 4096


def never(memory):
    raise AssertionError("nobody asked for memory")


class Waited:
    """Seconds that consumers waited."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def growth_of(slots=128, touch=never):
    arena = SlotArena(slots * MIB)
    waited = Waited()
    return Growth(arena, touch, waited=waited), arena, waited


def grow(growth, bandwidth):
    """One slot is given memory at that speed."""
    slot = growth.begin()
    growth.end(slot, slot.nbytes / bandwidth)


class TestSpeed:
    def test_it_is_tried_with_the_first_new_slot_and_again_after_some(self):
        growth, _, _ = growth_of()
        growth.taken(MIB)
        assert growth.is_owed
        grow(growth, 10 * SLOW)
        for _ in range(PROBE_EVERY // MIB - 1):
            growth.taken(MIB)
            assert not growth.is_owed
        growth.taken(MIB)
        assert growth.is_owed

    def test_reads_take_new_memory_themselves_until_it_is_known_to_be_slow(self):
        growth, _, _ = growth_of()
        assert not growth.apart
        growth.owe(MIB)
        grow(growth, 1.1 * SLOW)
        assert not growth.apart
        for _ in range(2):
            growth.owe(MIB)
            grow(growth, SLOW / 5)
        assert growth.apart

    def test_it_may_become_fast_again(self):
        growth, _, _ = growth_of()
        growth.owe(MIB)
        grow(growth, SLOW / 2)
        assert growth.apart
        for _ in range(4):
            growth.owe(MIB)
            grow(growth, 20 * SLOW)
        assert not growth.apart

    def test_a_processor_that_is_never_idle_is_not_waited_for(self):
        growth, _, waited = growth_of()
        growth.owe(MIB)
        grow(growth, SLOW / 2)
        growth.owe(MIB)
        slot = growth.begin()
        waited.seconds = 0.9 * PATIENCE_S
        assert growth.apart
        waited.seconds = 1.1 * PATIENCE_S
        assert not growth.apart
        growth.end(slot, slot.nbytes * 2 / SLOW)
        assert growth.apart

    @pytest.mark.parametrize("touch", [never, None])
    def test_small_arenas_and_machines_without_the_library_never_try(self, touch):
        slots = 2 * LEAST_CAPACITY // MIB if touch is None else LEAST_CAPACITY // MIB - 1
        growth, _, _ = growth_of(slots, touch)
        growth.taken(MIB)
        assert not growth.is_owed


class TestOwed:
    def test_as_much_is_found_as_reads_did_without(self):
        growth, arena, _ = growth_of()
        for nbytes in (MIB, 2 * MIB, MIB):
            growth.owe(nbytes)
        for _ in range(3):
            grow(growth, SLOW)
        assert growth.begin() is None
        assert not growth.is_owed
        assert (arena.committed, arena.in_use, arena.growing) == (4 * MIB, 0, 0)
        assert arena.acquire(2 * MIB).nbytes == 2 * MIB
        assert arena.new_slots == 0

    def test_no_more_than_the_capacity(self):
        growth, arena, _ = growth_of(slots=3)
        for _ in range(9):
            growth.owe(MIB)
        for _ in range(3):
            grow(growth, SLOW)
        assert growth.begin() is None
        assert not growth.is_owed
        assert arena.committed == arena.capacity

    def test_when_memory_cannot_be_found_it_comes_with_reads_again(self):
        growth, arena, _ = growth_of()
        growth.owe(MIB)
        grow(growth, SLOW / 2)
        growth.owe(MIB)
        growth.owe(MIB)
        growth.give_up(growth.begin())
        assert not growth.apart
        assert not growth.is_owed
        growth.taken(MIB)
        assert not growth.is_owed
        assert arena.growing == 0


@given(data=st.data())
def test_what_grows_stays_within_the_budget_beside_what_is_used(data):
    capacity = data.draw(st.integers(1, 12)) * PAGE
    arena = SlotArena(capacity)
    used, growing = [], []
    for _ in range(data.draw(st.integers(0, 40))):
        size = data.draw(st.sampled_from([1, 2, 3])) * PAGE
        action = data.draw(st.sampled_from(["acquire", "release", "grow", "grown"]))
        if action == "acquire":
            fits = arena.shortage(size) <= 0
            slot = arena.acquire(size)
            assert (slot is not None) == fits
            if slot is not None:
                slot.record[:8] = len(used).to_bytes(8, "little")
                used.append((slot, slot.record[:8].tobytes()))
        elif action == "grow":
            slot = arena.grow(size)
            if slot is not None:
                growing.append(slot)
        elif action == "release" and used:
            arena.release(used.pop(data.draw(st.integers(0, len(used) - 1)))[0])
        elif action == "grown" and growing:
            slot = growing.pop(data.draw(st.integers(0, len(growing) - 1)))
            slot.record[:] = bytes(slot.nbytes)
            arena.grown(slot)
        assert arena.in_use == sum(slot.nbytes for slot, _ in used)
        assert arena.growing == sum(slot.nbytes for slot in growing)
        assert arena.in_use + arena.growing <= arena.committed <= capacity
        assert all(slot.record[:8] == mark for slot, mark in used)


class Slow:
    """New memory that takes as much processor time as in a machine whose host takes memory away."""

    def __init__(self, error=None):
        self.touched = 0
        self.error = error
        self.failed = False
        self.let_through = threading.Event()
        self.let_through.set()

    def __call__(self, memory):
        assert self.let_through.wait(TEST_PATIENCE_S)
        if self.error is not None and self.touched:
            self.failed = True
            raise self.error
        self.touched += memory.nbytes
        memory[::PAGE] = bytes(len(memory[::PAGE]))
        return memory.nbytes * 3 / SLOW


@pytest.mark.parametrize("late", ["has memory", "has none"])
def test_a_thread_that_is_at_it_while_another_gives_up_leaves_nothing_owed(late, monkeypatch):
    monkeypatch.setattr(growth, "finders", lambda: 2)
    begun: list[int] = []

    def touch(memory):
        wait_until(lambda: len(begun) == 2)
        if threading.get_ident() == begun[0]:
            raise OSError("no memory")
        wait_until(lambda: state.touch is None)
        return 3 * memory.nbytes / SLOW

    def is_quiet():
        if threading.get_ident() not in begun:
            begun.append(threading.get_ident())
        return late == "has memory" or threading.get_ident() == begun[0] or state.touch is None

    state, arena, _ = growth_of(touch=touch)
    for _ in range(3):
        state.owe(MIB)
    lock = threading.RLock()
    grower = Grower(state, lock, is_quiet=is_quiet, on_grown=lambda: None)
    with lock:
        grower.notify()
    wait_until(lambda: state.touch is None and not state.is_owed)
    assert not arena.growing
    assert not state.is_slow
    with lock:
        grower.close()
    grower.join()
    assert not state.is_slow


@pytest.fixture
def make(tmp_path, monkeypatch):
    caches = []
    monkeypatch.setattr(growth, "LEAST_CAPACITY", 0)
    monkeypatch.setattr(growth, "QUIET_S", 0.01)

    def make(slots, count=32, touch=None, layouts=None, **options):
        touch = touch or Slow()
        monkeypatch.setattr("coterie.cache.residency.native_touch", lambda: touch)
        source = TinySource(tmp_path, layouts or dict.fromkeys(keys_of(count), SMALL))
        caches.append(ExpertCache(source, capacity=slots * SMALL.nbytes, **options))
        caches[-1].source = source
        return caches[-1], touch

    yield make
    for cache in caches:
        cache.close()


def use(cache, keys, phase="decode"):
    """A prefill over all keys, or decode steps of four each."""
    width = len(keys) if phase == "prefill" else 4
    for start in range(0, len(keys), width):
        with leased(cache, keys[start : start + width], phase=phase) as lease:
            for key, tensors in lease:
                assert_is(key, cache.source.layout(key), tensors)


def slow(cache):
    """Has the cache find out that new memory is slow."""
    use(cache, keys_of(1))
    wait_until(lambda: cache.snapshot().memory_is_slow)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
class TestCache:
    def test_a_miss_takes_used_memory_and_the_arena_comes_to_hold_what_it_would_have(self, make, phase):
        cache, touch = make(slots=16)
        slow(cache)
        before = cache.stats()
        touch.let_through.clear()
        use(cache, keys_of(32), phase)
        held_back = cache.stats()
        assert held_back.evictions - before.evictions > 16
        touch.let_through.set()
        wait_until(lambda: cache.stats().committed_bytes == cache.capacity)
        use(cache, keys_of(32), phase)
        assert cache.stats().resident_bytes == cache.capacity
        assert_consistent(cache)

    def test_memory_that_no_miss_did_without_is_not_taken(self, make, phase):
        cache, _ = make(slots=16)
        slow(cache)
        known = cache.stats().committed_bytes
        use(cache, keys_of(2), phase)
        time.sleep(0.1)
        assert cache.stats().committed_bytes <= known + SMALL.nbytes
        assert cache.stats().committed_bytes < cache.capacity // 2

    def test_where_new_memory_is_fast_nothing_leaves_before_the_arena_is_full(self, make, phase):
        cache, _ = make(slots=16, touch=lambda memory: memory.nbytes / SLOW / 100)
        use(cache, keys_of(1))
        wait_until(lambda: not cache.snapshot().memory_owed)
        use(cache, keys_of(16), phase)
        stats = cache.stats()
        assert (stats.evictions, stats.resident_count) == (0, 16)

    def test_with_room_for_all_nothing_is_tried(self, make, phase):
        cache, _ = make(slots=32, touch=never)
        use(cache, keys_of(32), phase)
        assert cache.all_resident
        assert cache.stats().new_slots == 32

    def test_when_memory_cannot_be_found_reads_go_on(self, make, phase):
        cache, touch = make(slots=16, touch=Slow(OSError("no memory")))
        slow(cache)
        use(cache, keys_of(32), phase)
        wait_until(lambda: not cache.snapshot().memory_owed)
        use(cache, keys_of(32), phase)
        wait_until(lambda: touch.failed)
        use(cache, keys_of(32), phase)
        assert_consistent(cache)

    def test_experts_of_several_sizes_share_what_there_is(self, make, phase):
        layouts = {key: (SMALL, LARGE)[key.expert % 2] for key in keys_of(64)}
        cache, _ = make(slots=24, layouts=layouts)
        slow(cache)
        for _ in range(4):
            use(cache, keys_of(64), phase)
            use(cache, keys_of(64)[::2], phase)
        wait_until(lambda: not cache.snapshot().memory_owed)
        assert_consistent(cache)

    def test_several_threads_go_on_while_it_grows(self, make, phase):
        cache, _ = make(slots=8)

        def work(keys):
            def run():
                for _ in range(10):
                    use(cache, keys, phase)
                    assert cache.stats().committed_bytes <= cache.capacity

            return run

        run_threads(work(keys_of(32)), work(keys_of(32)[::-1]), work(keys_of(32)[8:24]))
        wait_until(lambda: not cache.snapshot().memory_owed)
        assert_consistent(cache)


def test_closing_waits_for_the_piece_that_is_being_found(make):
    cache, touch = make(slots=16)
    slow(cache)
    touch.let_through.clear()
    use(cache, keys_of(32))
    wait_until(lambda: cache.snapshot().growing_bytes)
    closing = threading.Thread(target=cache.close)
    closing.start()
    touch.let_through.set()
    closing.join(TEST_PATIENCE_S)
    assert not closing.is_alive()
    assert cache.stats().committed_bytes == 0


def test_nothing_is_found_while_somebody_computes(make, monkeypatch):
    cache, touch = make(slots=16)
    slow(cache)
    monkeypatch.setattr("coterie.cache.scheduler.QUIET_S", 1000.0)
    use(cache, keys_of(32))
    with leased(cache, keys_of(32)[:2]) as lease:
        next(iter(lease))
        before = touch.touched
        time.sleep(0.1)
        # One piece may have begun while the consumer waited.
        assert touch.touched <= before + SMALL.nbytes


def test_a_thread_is_woken_only_if_it_can_find_memory(monkeypatch):
    monkeypatch.setattr(growth, "finders", lambda: 1)
    monkeypatch.setattr(growth, "QUIET_S", TEST_PATIENCE_S)
    quiet, looks = threading.Event(), []

    def is_quiet():
        if threading.current_thread().name.startswith("coterie-grow"):
            looks.append(quiet.is_set())
        return quiet.is_set()

    def notify():
        with lock:
            grower.notify()

    state, arena, _ = growth_of(touch=lambda memory: 3 * memory.nbytes / SLOW)
    state.owe(MIB)
    lock = threading.RLock()
    grower = Grower(state, lock, is_quiet=is_quiet, on_grown=lambda: None)
    try:
        notify()
        wait_until(lambda: looks)
        for _ in range(5):
            notify()
        time.sleep(0.05)
        assert looks == [False]
        quiet.set()
        notify()
        wait_until(lambda: arena.committed == MIB and not state.is_owed)
        # Now it waits for memory to be owed, whoever computes.
        quiet.clear()
        with lock:
            state.owe(MIB)
            grower.notify()
        wait_until(lambda: looks[-1] is False)
    finally:
        with lock:
            grower.close()
        grower.join()
