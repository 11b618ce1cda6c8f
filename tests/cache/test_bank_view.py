"""Views: the experts of one bank by id, in step with what is resident."""

import gc
import threading

import pytest

from coterie.errors import UsageError
from coterie.native import library

from .sources import PATIENCE_S, SMALL, assert_consistent, assert_is, bring, keys_of, leased, me

KEYS = keys_of(8)
BANK = KEYS[0].bank_key


def test_it_holds_what_is_resident_in_the_order_asked_for(open_cache):
    cache = open_cache(4)
    view = cache.view(BANK, 8)
    bring(cache, KEYS[:3])
    with view.try_hold([2, 0, 2], me()) as held:
        for expert, tensors in zip([2, 0, 2], held.tensors, strict=True):
            assert_is(KEYS[expert], SMALL, tensors)
        assert cache.snapshot().holds == 1
    assert cache.stats().hits == 3
    assert_consistent(cache)


def test_what_is_not_resident_is_not_held_and_counts_nothing(open_cache):
    cache = open_cache(4)
    view = cache.view(BANK, 8)
    bring(cache, KEYS[:3])
    before = cache.stats()
    assert view.try_hold([0, 3], me()) is None
    assert cache.stats() == before
    assert_consistent(cache)


def test_a_hold_of_nothing_leaves_nothing(open_cache):
    cache = open_cache(4)
    with cache.view(BANK, 8).try_hold([], me()) as held:
        assert held.tensors == []
    assert_consistent(cache)


def test_a_held_expert_is_not_evicted(open_cache):
    cache = open_cache(4)
    bring(cache, KEYS[:2])
    with cache.view(BANK, 8).try_hold([0, 1], me()) as held:
        views = list(held.tensors)
        done = threading.Event()

        def other():
            for _ in range(3):
                with leased(cache, KEYS[2:7]) as lease:
                    for key, tensors in lease:
                        assert_is(key, SMALL, tensors)
            done.set()

        threading.Thread(target=other, daemon=True).start()
        assert done.wait(PATIENCE_S)
        for key, tensors in zip(KEYS, views, strict=False):
            assert_is(key, SMALL, tensors)
    assert_consistent(cache)


def test_a_lost_hold_and_a_repeated_release_do_no_harm(open_cache):
    cache = open_cache(4)
    bring(cache, KEYS[:4])
    view = cache.view(BANK, 8)
    held = view.try_hold(range(4), me())
    del held
    gc.collect()
    held = view.try_hold(range(4), me())
    held.release()
    held.release()
    assert_consistent(cache)


def test_a_view_made_late_knows_what_came_before(open_cache):
    cache = open_cache(4)
    bring(cache, KEYS[4:6])
    cache.view(BANK, 8).try_hold([4, 5], me()).release()
    assert cache.view(KEYS[0]._replace(layer=1).bank_key, 8).try_hold([4], me()) is None


def test_what_is_resident_can_be_looked_at(open_cache):
    cache = open_cache(4)
    view = cache.view(BANK, 8)
    assert view.resident() == []
    bring(cache, KEYS[4:7])
    before = cache.stats()
    assert view.resident() == [4, 5, 6]
    assert cache.stats() == before
    bring(cache, KEYS[:4])
    assert [key.expert for key in sorted(cache.snapshot().resident)] == view.resident()


def test_the_evicted_are_gone_and_the_held_are_not_evicted(open_cache):
    cache = open_cache(4)
    view = cache.view(BANK, 8)
    bring(cache, KEYS[:4])
    held = view.try_hold([0, 1], me())
    views = held.tensors

    def other():
        for key in KEYS[4:]:
            bring(cache, [key])

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(60)
    for key, tensors in zip(KEYS, views, strict=False):
        assert_is(key, SMALL, tensors)
    held.release()
    assert [view.try_hold([expert], me()) is not None for expert in (2, 3)] == [False, False]
    assert_consistent(cache)


def test_uses_steer_eviction(open_cache):
    cache = open_cache(4)
    view = cache.view(BANK, 8)
    bring(cache, KEYS[:4])
    view.try_hold([0], me()).release()
    bring(cache, KEYS[4:7])
    assert KEYS[0] in cache


def test_the_policy_hears_of_more_uses_than_are_kept_for_it(open_cache):
    cache = open_cache(4)
    view = cache.view(BANK, 8)
    bring(cache, KEYS[:4])
    for _ in range(600):
        view.try_hold([0], me()).release()
    bring(cache, KEYS[4:7])
    assert KEYS[0] in cache
    assert cache.stats().hits == 600


def test_uses_are_not_remembered_while_everything_fits(open_cache):
    cache = open_cache(8)
    view = cache.view(BANK, 8)
    bring(cache, KEYS[:7])
    view.try_hold([0, 1], me()).release()
    assert not cache.snapshot().untold_uses
    # Until somebody has asked for it, it matters whether anybody does.
    cache.warm(KEYS[7:])
    cache.quiesce()
    view.try_hold([0, 1], me()).release()
    assert cache.snapshot().untold_uses == 1
    bring(cache, KEYS)
    cache.warm(())
    assert cache.stats().warmed_used == 1
    view.try_hold([0, 1], me()).release()
    assert not cache.snapshot().untold_uses


def test_after_closing_it_says_so(open_cache):
    cache = open_cache(4)
    view = cache.view(BANK, 8)
    bring(cache, KEYS[:1])
    cache.close()
    with pytest.raises(UsageError, match="closed"):
        view.try_hold([0], me())


@pytest.fixture
def loaded():
    found = library()
    if found is None:
        pytest.skip("the native library was not built")
    return found


def there(addresses):
    return [addresses[expert] != 0 for expert in range(8)]


def test_addresses_are_in_step_with_what_is_resident(open_cache, loaded):
    cache = open_cache(4)
    bring(cache, KEYS[:2])
    addresses = cache.view(BANK, 8).addresses(loaded)
    assert there(addresses) == [True, True, *[False] * 6]
    bring(cache, KEYS[3:6])
    assert sum(there(addresses)) == 4
    assert there(addresses)[3:6] == [True] * 3
    with cache.view(BANK, 8).try_hold([5], me()) as held:
        first = SMALL.fields[0]
        assert addresses[5] == held.tensors[0][0].data_ptr() - first.offset
    cache.close()
    assert there(addresses) == [False] * 8


def test_all_who_ask_have_the_same_addresses(open_cache, loaded):
    cache = open_cache(4)
    # Two threads at their first token, or two banks that are tied.
    one, other = (cache.view(BANK, 8).addresses(loaded) for _ in range(2))
    bring(cache, KEYS[:4])
    assert there(one) == there(other) == [True] * 4 + [False] * 4
    bring(cache, KEYS[4:])
    assert there(one) == there(other) == [False] * 4 + [True] * 4


def test_what_was_found_without_the_cache_counts_as_hits(open_cache):
    cache = open_cache(4)
    bring(cache, KEYS[:4])
    view = cache.view(BANK, 8)
    hits = cache.stats().hits
    view.asked(me())
    view.note([0, 1])
    assert cache.stats().hits == hits + 2
    bring(cache, KEYS[4:6])
    assert [view.try_hold([expert], me()) is not None for expert in range(6)] == [True, True, False, False, True, True]
    cache.close()
    with pytest.raises(UsageError, match="closed"):
        view.asked(me())
