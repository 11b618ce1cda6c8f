"""What a lease yields, in which order, for how long, and what is left when something goes wrong."""

import gc
import itertools
import signal
import threading

import pytest

from coterie.cache import ExpertCache, LeaseStats
from coterie.errors import ExpertMissingError, ReadError, UsageError
from coterie.eviction import PromptUse

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

KEYS = keys_of(16)
SIZE = SMALL.nbytes


@pytest.fixture
def make(tmp_path):
    """Makes a cache of so many slots over 16 experts; closes it at the end."""
    caches = []

    def make(slots, before_read=None, **options):
        source = TinySource.uniform(tmp_path, 16, before_read=before_read)
        cache = ExpertCache(source, capacity=slots * SIZE, **options)
        cache.source = source
        caches.append(cache)
        return cache

    yield make
    for cache in caches:
        cache.close()


def drain(cache, keys, **options):
    """Leases keys, checks every byte, and returns the order and the figures."""
    order = []
    with leased(cache, keys, **options) as lease:
        for key, tensors in lease:
            assert_is(key, SMALL, tensors)
            order.append(key)
    assert sorted(order) == sorted(set(keys))
    return order, lease.stats


@pytest.mark.parametrize("slots", [2, 3, 8, 16])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("ordered", [True, False])
def test_every_expert_comes_once_with_its_own_bytes_at_any_budget(make, slots, phase, ordered):
    cache = make(slots)
    mixed = [KEYS[n * 7 % 16] for n in range(16)]
    for _ in range(3):
        order, stats = drain(cache, mixed, ordered=ordered, phase=phase)
        assert not ordered or order == mixed
        assert stats.requested == 16 == stats.hits + stats.misses
    assert_consistent(cache)


def test_resident_experts_come_first_and_the_others_are_read_meanwhile(make):
    gate = Gate(KEYS[0], KEYS[2])
    cache = make(8, gate)
    drain(cache, [KEYS[1], KEYS[3]])
    with leased(cache, KEYS[:4]) as lease:
        assert next(lease)[0] == KEYS[1]
        # Nobody has asked for the misses yet, and they are being read.
        gate.wait_for(KEYS[0])
        gate.wait_for(KEYS[2])
        assert next(lease)[0] == KEYS[3]
        gate.open(KEYS[2])
        assert next(lease)[0] == KEYS[2]
        gate.open(KEYS[0])
        assert [key for key, _ in lease] == [KEYS[0]]


def test_an_ordered_lease_waits_for_its_turn(make):
    gate = Gate(KEYS[0])
    cache = make(8, gate)
    with leased(cache, KEYS[:3], ordered=True) as lease:
        gate.wait_for(KEYS[2])
        gate.open()
        assert [key for key, _ in lease] == KEYS[:3]


def test_an_ordered_lease_gives_up_later_hits_when_it_needs_their_slots(make):
    cache = make(2, eviction="lru")
    drain(cache, [KEYS[1], KEYS[2]])
    order, stats = drain(cache, KEYS[:3], ordered=True)
    assert order == KEYS[:3]
    assert stats.requested == 3
    assert_consistent(cache)


def test_repeated_keys_count_once_and_no_keys_are_fine(make):
    cache = make(4)
    _, stats = drain(cache, [KEYS[0], KEYS[1], KEYS[0]])
    assert stats.requested == 2
    assert drain(cache, []) == ([], LeaseStats())


def test_figures_of_a_lease(make):
    gate = Gate(KEYS[4])
    cache = make(4, gate)
    drain(cache, KEYS[:4])
    with leased(cache, KEYS[2:6]) as lease:

        def open_when_waited_for():
            wait_until(lambda: cache.snapshot().waiting)
            gate.open()

        opener = threading.Thread(target=open_when_waited_for)
        opener.start()
        assert [key for key, _ in lease][:2] == KEYS[2:4]
        opener.join()
    stats = lease.stats
    assert (stats.requested, stats.hits, stats.misses) == (4, 2, 2)
    assert stats.bytes_read == 2 * SIZE
    assert stats.evictions == 2
    assert stats.wait_s > 0
    assert KEYS[0] not in cache
    assert KEYS[5] in cache


class TestValidity:
    def test_what_fits_stays_until_the_context_ends(self, make):
        cache = make(4)
        with leased(cache, KEYS[:4]) as lease:
            assert lease.together
            collected = dict(lease)
            predict(cache, KEYS[4:])
            for key, tensors in collected.items():
                assert_is(key, SMALL, tensors)

    def test_another_thread_cannot_take_it_away(self, make):
        cache = make(4)
        got = threading.Event()

        def other():
            with leased(cache, KEYS[8:12], phase="prefill") as lease:
                for key, tensors in lease:
                    assert_is(key, SMALL, tensors)
                    got.set()

        with leased(cache, KEYS[:2]) as lease:
            collected = dict(lease)
            thread = threading.Thread(target=other)
            thread.start()
            assert got.wait(PATIENCE_S)
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
            for key, tensors in collected.items():
                assert_is(key, SMALL, tensors)

    def test_what_does_not_fit_is_valid_until_the_next_step(self, make):
        cache = make(2)
        with leased(cache, KEYS) as lease:
            assert not lease.together
            for key, tensors in lease:
                assert_is(key, SMALL, tensors)
                assert cache.stats().resident_bytes <= cache.capacity
                assert_is(key, SMALL, tensors)

    def test_leases_that_must_stay_together_take_turns(self, make):
        cache = make(4)

        def work(mine):
            def run():
                for _ in range(20):
                    with leased(cache, mine) as lease:
                        for key, tensors in dict(lease).items():
                            assert_is(key, SMALL, tensors)

            return run

        run_threads(work(KEYS[:4]), work(KEYS[4:8]), work(KEYS[6:9]))
        assert_consistent(cache)


class TestScanResistance:
    @pytest.mark.parametrize("eviction", ["lru", "lfu", "lfru"])
    def test_a_prefill_does_not_flush_what_decoding_warmed(self, make, eviction):
        cache = make(8, eviction=eviction)
        warm = KEYS[:6]
        for _ in range(3):
            drain(cache, warm)
        for _ in range(2):
            drain(cache, KEYS, phase="prefill")
        _, stats = drain(cache, warm)
        assert stats.hits == 6
        # The same keys as a decode takes their places.
        drain(cache, KEYS[6:])
        _, stats = drain(cache, warm)
        assert stats.hits < 6

    @pytest.mark.parametrize("eviction", ["markov", "lru", "lfu", "lfru"])
    def test_what_a_prompts_last_tokens_use_stays(self, make, eviction):
        cache = make(8, eviction=eviction)
        last = KEYS[2:5]
        drain(cache, KEYS[:8], phase="prefill", prompt=PromptUse([KEYS[1:3], last], 3))
        # A scan that says nothing of that kind turns over the rest.
        drain(cache, KEYS[8:], phase="prefill")
        _, stats = drain(cache, last)
        assert stats.hits == 3

    def test_of_what_was_announced_it_stays_too(self, make):
        cache = make(8)
        with leased(cache, KEYS[:1], phase="prefill", upcoming=KEYS[1:3]) as lease:
            list(lease)
            cache.quiesce()
        drain(cache, KEYS[1:3], phase="prefill", prompt=PromptUse([KEYS[1:3]], 2))
        drain(cache, KEYS[3:], phase="prefill")
        assert all(key in cache for key in KEYS[1:3])

    def test_in_a_full_arena_it_reuses_its_own_slots(self, make):
        cache = make(8)
        for _ in range(2):
            drain(cache, KEYS[:8])
        drain(cache, KEYS[8:], phase="prefill")
        assert sum(key in cache for key in KEYS[:8]) >= 6

    def test_in_an_empty_arena_it_fills_it(self, make):
        cache = make(8)
        drain(cache, KEYS[:8], phase="prefill")
        assert all(key in cache for key in KEYS[:8])


class TestFailures:
    def test_a_failed_read_raises_and_the_next_lease_tries_again(self, make):
        error = ReadError("the disk is on fire", key=KEYS[2])
        cache = make(8, Failing(error, KEYS[2]))
        with pytest.raises(ReadError, match="on fire") as caught:
            drain(cache, KEYS[:4])
        assert caught.value.key == KEYS[2]
        assert_consistent(cache)
        drain(cache, KEYS[:4])

    def test_iterating_on_after_a_failure_raises_again(self, make):
        cache = make(8, Failing(ReadError("gone"), KEYS[0]))
        with leased(cache, KEYS[:1]) as lease:
            for _ in range(2):
                with pytest.raises(ReadError, match="gone"):
                    next(lease)

    def test_any_exception_of_a_source_becomes_a_read_error(self, make):
        cache = make(8, Failing(ZeroDivisionError("oops"), KEYS[0]))
        with pytest.raises(ReadError, match="oops") as caught:
            drain(cache, KEYS[:1])
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_every_consumer_that_waits_for_it_raises_its_own(self, make):
        class Both(Gate):
            def __call__(self, key):
                super().__call__(key)
                raise ReadError("shared trouble")

        gate = Both(KEYS[0])
        cache = make(8, gate)
        errors = []

        def work():
            with pytest.raises(ReadError, match="shared trouble") as caught:
                drain(cache, KEYS[:1])
            errors.append(caught.value)

        def opener():
            gate.wait_for(KEYS[0])
            # Until both wait for this very read: one that comes after its failure would read again.
            wait_until(lambda: cache.snapshot().loading.get(KEYS[0]) == 2)
            gate.open()

        run_threads(work, work, opener)
        assert len(errors) == 2
        assert errors[0] is not errors[1]
        # The second one had not asked yet when that read began: it has failed in a read of its own.
        assert cache.source.reads == [KEYS[0]] * 2

    def test_a_read_that_failed_before_it_was_asked_for_is_read_once_more(self, make):
        class Fault(Gate):
            def __call__(self, key):
                super().__call__(key)
                if key == KEYS[0] and self.arrived.count(key) == 1:
                    raise ReadError("a passing fault")

        for begun_for in ("a prediction", "who has left"):
            gate = Fault(KEYS[0])
            cache = make(8, gate)
            lease = leased(cache, KEYS[:1])
            if begun_for == "a prediction":
                predict(cache, KEYS[:1])
            else:
                lease.__enter__()
            gate.wait_for(KEYS[0])
            lease.close()

            def opener(cache=cache, gate=gate):
                wait_until(lambda: cache.snapshot().loading.get(KEYS[0]) == 1)
                gate.open()

            run_threads(lambda cache=cache: drain(cache, KEYS[:2]), opener)
            assert cache.source.reads.count(KEYS[0]) == 2
            assert_consistent(cache)

    def test_a_read_that_nobody_wants_any_more_is_not_repeated(self, make):
        class Fault(Gate):
            def __call__(self, key):
                super().__call__(key)
                if key == KEYS[0]:
                    raise ReadError("a lasting fault")

        gate = Fault(KEYS[0])
        cache = make(8, gate)
        predict(cache, KEYS[:1])
        gate.wait_for(KEYS[0])
        with leased(cache, KEYS[:1]):
            assert cache.snapshot().loading[KEYS[0]] == 1
        assert cache.snapshot().loading[KEYS[0]] == 0
        gate.open()
        cache.quiesce()
        drain(cache, KEYS[1:4])
        assert cache.source.reads.count(KEYS[0]) == 1
        assert_consistent(cache)

    def test_leaving_early_by_any_way_gives_everything_up(self, make):
        cache = make(4)
        with pytest.raises(ZeroDivisionError), leased(cache, KEYS) as lease:
            raise ZeroDivisionError(next(lease))
        with leased(cache, KEYS) as lease:
            for _ in lease:
                break

        def generate():
            with leased(cache, KEYS) as lease:
                yield from lease

        generator = generate()
        next(generator)
        generator.close()
        with pytest.raises(UsageError, match="closed"):
            next(lease)
        drain(cache, KEYS)
        assert_consistent(cache)

    def test_a_lost_lease_gives_everything_up(self, make):
        cache = make(2)
        lease = leased(cache, KEYS[:2])
        lease.__enter__()
        next(lease)
        del lease
        gc.collect()
        drain(cache, KEYS[4:8])
        assert_consistent(cache)

    def test_a_broken_policy_is_reported_not_waited_for(self, make):
        class Broken:
            def insert(self, key, nbytes, *, cold=False):
                raise ValueError("broken policy")

        cache = make(4, eviction=Broken())
        with pytest.raises(ReadError, match="broken policy"):
            drain(cache, KEYS[:2])


class TestMisuse:
    def test_an_expert_that_the_source_does_not_have(self, make):
        with pytest.raises(ExpertMissingError, match="00099"):
            leased(make(4), [KEYS[0]._replace(expert=99)])

    def test_an_unknown_phase(self, make):
        with pytest.raises(UsageError, match="Did you mean 'prefill'"):
            leased(make(4), KEYS, phase="prefil")

    def test_a_lease_must_be_entered_once(self, make):
        cache = make(4)
        lease = leased(cache, KEYS[:1])
        with pytest.raises(UsageError, match="not been entered"):
            next(lease)
        with lease, pytest.raises(UsageError, match="entered once"):
            lease.__enter__()

    def test_leases_do_not_nest_in_a_thread(self, make):
        cache = make(4)
        with leased(cache, KEYS[:2]), pytest.raises(UsageError, match="already has a lease"), leased(cache, KEYS[2:]):
            pass
        drain(cache, KEYS[:2])
        held = cache.view(KEYS[0].bank_key, 16).try_hold([0, 1], me())
        with held, pytest.raises(UsageError, match="already has a lease"), leased(cache, KEYS[2:]):
            pass
        assert_consistent(cache)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")
@pytest.mark.parametrize("slots", [2, 5, 16])
def test_an_interrupt_at_any_moment_leaves_the_cache_consistent(make, slots):
    cache = make(slots)
    view = cache.view(KEYS[0].bank_key, 16)
    main = threading.get_ident()

    delivered = threading.Event()

    def interrupt(number, frame):
        delivered.set()
        raise KeyboardInterrupt

    def work():
        for step in itertools.count():
            if delivered.is_set():  # Python swallows what is raised while an object is finalised
                return
            mine = [KEYS[(step * 5 + n) % 16] for n in range(6)]
            held = view.try_hold([key.expert for key in mine[:2]], me())
            if held is not None:
                held.release()
            with leased(cache, mine, ordered=bool(step % 2), phase="prefill" if step % 3 else "decode") as lease:
                for key, tensors in lease:
                    assert_is(key, SMALL, tensors)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        for number in range(80):
            delay = 0.0001 + (number * 37 % 80) * 0.00003
            timer = threading.Timer(delay, signal.pthread_kill, (main, signal.SIGUSR1))
            delivered.clear()
            try:
                timer.start()
                work()
            except KeyboardInterrupt:
                pass
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    gc.collect()
    drain(cache, KEYS)
    assert_consistent(cache)
