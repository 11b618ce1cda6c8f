"""Forked children: a cache's threads are not there, and its lock may be held for ever."""

import gc
import os
import threading

import pytest

from coterie.cache import Consumer, ExpertCache
from coterie.errors import UsageError
from coterie.native import library

from .sources import Device, TinySource, assert_consistent, bring, keys_of, me

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

KEYS = keys_of(2)
BANK = KEYS[0].bank_key
TOLD = 10


def in_child(cache, act):
    """The exit code of a child that is forked while another thread has the cache's lock, and then acts."""
    taken, done = threading.Event(), threading.Event()

    def keep():
        with cache._guard.lock:
            taken.set()
            done.wait()

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    taken.wait()
    # The child may not collect what other tests left: their threads are not there to end.
    gc.disable()
    child = os.fork()
    if child == 0:
        try:
            watch = threading.Timer(5, os._exit, (3,))
            watch.daemon = True
            watch.start()
            act()
            os._exit(0)
        except UsageError as error:
            os._exit(TOLD if "another process" in str(error) else 2)
        finally:
            os._exit(1)
    gc.enable()
    done.set()
    keeper.join()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def cache(tmp_path):
    with ExpertCache(TinySource.uniform(tmp_path, 2), capacity=2**20) as cache:
        yield cache


ASKING = {
    "view": lambda cache: cache.view(BANK, 2),
    "lease": lambda cache: cache.lease(KEYS, consumer=me()),
    "predict": lambda cache: cache.predict(KEYS, consumer=me()),
    "warm": lambda cache: cache.warm(KEYS),
    "keep": lambda cache: cache.keep(KEYS),
    "expect_use": lambda cache: cache.expect_use({}),
    "stats": lambda cache: cache.stats(),
    "read_times": lambda cache: cache.read_times(),
    "snapshot": lambda cache: cache.snapshot(),
    "quiesce": lambda cache: cache.quiesce(),
}


@pytest.mark.parametrize("name", ASKING)
def test_a_child_is_told_whatever_it_asks_for(cache, name):
    bring(cache, KEYS)
    assert in_child(cache, lambda: ASKING[name](cache)) == TOLD
    bring(cache, KEYS)
    assert_consistent(cache)


def test_a_child_is_told_where_it_goes_on_with_a_view(cache):
    bring(cache, KEYS)
    view = cache.view(BANK, 2)
    assert in_child(cache, lambda: view.try_hold([0], me())) == TOLD
    assert in_child(cache, lambda: view.asked(me())) == TOLD


def test_a_child_is_told_where_it_would_look_for_itself(cache):
    found = library()
    if found is None:
        pytest.skip("the native library was not built")
    view = cache.view(BANK, 2)
    assert in_child(cache, lambda: view.addresses(found)) == TOLD


def test_a_child_is_told_where_it_goes_on_with_a_lease(cache):
    entered, later = cache.lease(KEYS, consumer=me()), cache.lease(KEYS, consumer=Consumer())
    with entered:
        assert in_child(cache, lambda: next(entered)) == TOLD
        assert in_child(cache, later.__enter__) == TOLD
        list(entered)
    assert_consistent(cache)


def test_what_was_given_up_before_the_fork_does_not_stop_a_child(cache):
    holding, leasing, streaming = Device(), Device(), Device()
    with cache.lease(KEYS, consumer=leasing) as lease:
        list(lease)
    with cache.view(BANK, 2).try_hold([0], holding):
        pass
    with cache.lease(KEYS, consumer=streaming, phase="prefill") as lease:
        next(lease)
        next(lease)
        pending = [release for device in (holding, leasing, streaming) for release in device.pending]
        assert len(pending) == 3
        assert in_child(cache, lambda: [release() for release in pending]) == 0
    pending += streaming.pending
    for release in pending:
        release()
    assert_consistent(cache)


def test_a_child_can_close_what_it_has(cache):
    bring(cache, KEYS)
    held = cache.view(BANK, 2).try_hold([0], me())
    lease = cache.lease(KEYS, consumer=Consumer()).__enter__()
    assert in_child(cache, lambda: (held.release(), lease.close(), cache.close())) == 0
    held.release()
    lease.close()
    assert_consistent(cache)


def test_a_closed_cache_still_says_what_it_did(cache):
    bring(cache, KEYS)
    cache.close()
    assert cache.stats().misses == 2
    assert cache.read_times().wait_s >= 0
    assert cache.snapshot().closed
    assert cache.quiesce().closed
    for name in ("view", "lease", "predict", "warm", "expect_use"):
        with pytest.raises(UsageError, match="is closed"):
            ASKING[name](cache)
