"""Several threads at once: nobody waits for ever, and nobody sees another expert's bytes."""

import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.cache import ExpertCache
from coterie.errors import ReadError

from .sources import (
    LARGE,
    SMALL,
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


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize("ordered", [[False, False], [True, False], [True, True]])
def test_two_threads_share_two_slots_for_128_experts_each(tmp_path, phase, ordered):
    source = TinySource.uniform(tmp_path, 128)
    keys = keys_of(128)
    with ExpertCache(source, capacity=2 * SMALL.nbytes) as cache:

        def work(ordered, keys):
            def run():
                seen = []
                with leased(cache, keys, ordered=ordered, phase=phase) as lease:
                    for key, tensors in lease:
                        assert_is(key, SMALL, tensors)
                        seen.append(key)
                assert sorted(seen) == sorted(keys)

            return run

        run_threads(work(ordered[0], keys), work(ordered[1], keys[::-1]))
        assert_consistent(cache)


def test_two_threads_that_miss_the_same_expert_read_it_once(tmp_path):
    key = keys_of(1)[0]
    gate = Gate(key)
    source = TinySource.uniform(tmp_path, 4, before_read=gate)
    with ExpertCache(source, capacity=2**20) as cache:

        def work():
            with leased(cache, [key]) as lease:
                for _, tensors in lease:
                    assert_is(key, SMALL, tensors)

        def opener():
            gate.wait_for(key)
            # Until all three wait for this very read: one that comes after it would hit.
            wait_until(lambda: cache.snapshot().loading.get(key) == 3)
            gate.open()

        run_threads(work, work, work, opener)
        assert source.reads == [key]
        assert cache.stats().misses == 3


def test_when_a_reading_thread_ends_whoever_waits_is_told_and_it_shows(tmp_path):
    class Death(BaseException):
        """Ends a thread."""

    def dies(key):
        raise Death

    with ExpertCache(TinySource.uniform(tmp_path, 4, before_read=dies), capacity=2**20) as cache:
        assert cache.failure is None

        def work():
            with pytest.raises(ReadError, match="has ended"), leased(cache, keys_of(2)) as lease:
                next(lease)

        run_threads(work, work)
        assert isinstance(cache.failure, Death)


class Unreliable:
    """Now and then a read fails, and now and then it takes its time."""

    def __init__(self, seed):
        self._count = seed
        self._lock = threading.Lock()

    def __call__(self, key):
        with self._lock:
            self._count += 1
            count = self._count
        if count % 7 == 0:
            threading.Event().wait(0.001)
        if count % 11 == 0:
            raise ReadError("now and then", key=key)


LEASE = st.fixed_dictionaries(
    {
        "keys": st.lists(st.integers(0, 11), min_size=0, max_size=12, unique=True),
        "kind": st.sampled_from(
            ["lease", "ordered", "prefill", "ordered prefill", "view", "abandon", "expect", "warm"]
        ),
    }
)


@settings(max_examples=60)
@given(
    scripts=st.lists(st.lists(LEASE, min_size=1, max_size=8), min_size=2, max_size=4),
    extra=st.integers(0, 12),
    kind=st.sampled_from(["aligned", "odd", "decoded"]),
    eviction=st.sampled_from(["lru", "lfu", "lfru"]),
    threads=st.integers(1, 4),
    failing=st.booleans(),
)
def test_any_interleaving_under_any_budget(scripts, extra, kind, eviction, threads, failing):
    keys = keys_of(12)
    with tempfile.TemporaryDirectory() as root:
        source = TinySource.mixed(Path(root), 12, kind=kind, before_read=Unreliable(extra) if failing else None)
        capacity = 2 * LARGE.nbytes + extra * 4096
        with ExpertCache(source, capacity=capacity, eviction=eviction, read_threads=threads) as cache:
            view = cache.view(keys[0].bank_key, len(keys))

            def check(key, tensors):
                assert_is(key, source.layout(key), tensors)
                stats = cache.stats()
                assert stats.resident_bytes <= stats.committed_bytes <= cache.capacity
                assert key in cache

            def step(mine, kind):
                if kind == "expect":
                    predict(cache, mine)
                elif kind == "warm":
                    cache.warm(mine)
                elif kind == "view":
                    held = view.try_hold([key.expert for key in mine], me())
                    if held is not None:
                        with held:
                            for key, tensors in zip(mine, held.tensors, strict=True):
                                check(key, tensors)
                else:
                    phase = "prefill" if "prefill" in kind else "decode"
                    with leased(cache, mine, ordered="ordered" in kind, phase=phase) as lease:
                        seen = {}
                        for key, tensors in lease:
                            check(key, tensors)
                            seen[key] = tensors
                            if kind == "abandon":
                                return
                        assert set(seen) == set(mine)
                        if lease.together:
                            for key, tensors in seen.items():
                                check(key, tensors)

            def work(script):
                def run():
                    for action in script:
                        try:
                            step([keys[number] for number in action["keys"]], action["kind"])
                        except ReadError:
                            assert failing

                return run

            run_threads(*(work(script) for script in scripts))
            assert_consistent(cache)
