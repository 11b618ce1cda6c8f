"""Each policy against traces worked out by hand, and rules that hold for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import UsageError
from coterie.eviction import POLICY_NAMES, make_policy

# Key, bytes, cold (of a new one) or hit (else it is removed), bytes needed, which of the nine keys are held.
STEP = st.tuples(st.integers(0, 8), st.integers(1, 5), st.booleans(), st.integers(1, 12), st.integers(0, 2**9 - 1))


def always(key):
    return True


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_policy_made_by_name_starts_empty(name):
    assert make_policy(name).victims(1, always) == []


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match="Did you mean 'lfru'"):
        make_policy("lfrru")


@pytest.mark.parametrize("name", POLICY_NAMES)
class TestEveryPolicy:
    def test_victims_reach_the_bytes_and_stay_until_removed(self, name):
        policy = make_policy(name)
        for key in "abc":
            policy.insert(key, 10)
        assert policy.victims(15, always) == ["a", "b"]
        assert policy.victims(15, always) == ["a", "b"]
        policy.remove("a")
        assert policy.victims(15, always) == ["b", "c"]

    def test_nothing_is_evicted_in_vain(self, name):
        policy = make_policy(name)
        policy.insert("a", 10)
        policy.insert("b", 10)
        assert policy.victims(11, lambda key: key == "b") == []
        assert policy.victims(0, always) == []

    def test_held_records_are_passed_over(self, name):
        policy = make_policy(name)
        for key in "abc":
            policy.insert(key, 10)
        assert policy.victims(10, lambda key: key != "a") == ["b"]

    def test_cold_records_leave_first_until_used(self, name):
        policy = make_policy(name)
        policy.insert("warm", 1)
        policy.insert("scan-1", 1, cold=True)
        policy.insert("scan-2", 1, cold=True)
        assert policy.victims(2, always) == ["scan-2", "scan-1"]
        policy.hit("scan-2")
        assert policy.victims(1, always) == ["scan-1"]
        policy.remove("scan-1")
        assert policy.victims(1, always) == ["warm"]

    @given(steps=st.lists(STEP, min_size=1, max_size=40))
    def test_it_names_resident_evictable_keys_once(self, name, steps):
        policy = make_policy(name)
        sizes = {}
        for key, nbytes, flag, needed, held_bits in steps:
            if key not in sizes:
                sizes[key] = nbytes
                policy.insert(key, nbytes, cold=flag)
            elif flag:
                policy.hit(key)
            else:
                policy.remove(key)
                del sizes[key]
            held = {number for number in range(9) if held_bits >> number & 1}
            victims = policy.victims(needed, lambda key, held=held: key not in held)
            free = {key: size for key, size in sizes.items() if key not in held}
            assert len(set(victims)) == len(victims)
            assert set(victims) <= set(free)
            if sum(free.values()) >= needed:
                assert sum(sizes[key] for key in victims) >= needed
                assert sum(sizes[key] for key in victims[:-1]) < needed
            else:
                assert victims == []


def test_lru_evicts_what_was_used_longest_ago():
    policy = make_policy("lru")
    for key in "abcd":
        policy.insert(key, 1)
    policy.hit("a")
    policy.hit("c")
    assert policy.victims(4, always) == ["b", "d", "a", "c"]


def test_lfu_evicts_the_least_used_and_breaks_ties_by_age():
    policy = make_policy("lfu")
    for key in "abc":
        policy.insert(key, 1)
    policy.hit("a")
    policy.hit("a")
    policy.hit("b")
    assert policy.victims(3, always) == ["c", "b", "a"]
    policy.hit("c")
    assert policy.victims(3, always) == ["b", "c", "a"]


def test_lfu_ages_so_that_old_fame_passes():
    """a: 4 uses, so priority 4. Each further record enters at the age that the last evicted one left behind."""
    policy = make_policy("lfu")
    policy.insert("a", 1)
    for _ in range(3):
        policy.hit("a")
    ages = []
    for number in range(4):
        policy.insert(number, 1)
        (victim,) = policy.victims(1, always)
        ages.append(victim)
        policy.remove(victim)
    # Priorities on entry are 1, 2, 3 and 4; at 4, "a" is the older of the two.
    assert ages == [0, 1, 2, "a"]


def test_lfru_protects_the_recent_half_and_ranks_the_rest_by_use():
    policy = make_policy("lfru")
    for key in "abcd":
        policy.insert(key, 1)
    policy.hit("a")
    policy.hit("b")
    assert policy.victims(4, always) == ["c", "d", "a", "b"]
    # Three do not fit in half of four: the least recent of them, a, falls back with its two uses.
    policy.hit("c")
    assert policy.victims(4, always) == ["d", "a", "b", "c"]


def test_lfru_shrinks_its_safe_half_when_records_leave():
    policy = make_policy("lfru")
    for key in "abcd":
        policy.insert(key, 1)
    policy.hit("a")
    policy.hit("b")
    policy.remove("c")
    policy.remove("d")
    # One of two may be privileged: the more recent one.
    assert policy.victims(2, always) == ["a", "b"]
