"""Traces worked out by hand, and the order between policies and bounds on random ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import UsageError
from coterie.eviction import POLICY_NAMES, Group, LruPolicy, belady, compare, compulsory, simulate


def trace_of(*groups, layers=1, prefill=False):
    return [
        Group(step=index // layers, layer=index % layers, keys=tuple(keys), prefill=prefill)
        for index, keys in enumerate(groups)
    ]


@st.composite
def traces(draw, largest_group=4, scans=False):
    layers = draw(st.integers(1, 3))
    groups = draw(
        st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=largest_group, unique=True), min_size=1, max_size=25)
    )
    scanning = draw(st.sets(st.integers(0, len(groups) - 1))) if scans else set()
    return [
        Group(step=n // layers, layer=n % layers, keys=tuple((n % layers, key) for key in keys), prefill=n in scanning)
        for n, keys in enumerate(groups)
    ]


class TestByHand:
    # Belady's own kind of example: a b c | a b d | a b c d, one key at a time, three places.
    TRACE = trace_of("a", "b", "c", "d", "a", "b", "e", "a", "b", "c", "d", "e")

    def test_lru(self):
        # The textbook string 1 2 3 4 1 2 5 1 2 3 4 5: LRU has 10 faults with three frames.
        outcome = simulate(self.TRACE, 3, "lru")
        assert (outcome.misses, outcome.hits, outcome.evictions) == (10, 2, 7)
        assert outcome.hit_rate == 2 / 12

    def test_belady(self):
        # The optimum has 7 faults.
        outcome = belady(self.TRACE, 3)
        assert (outcome.misses, outcome.hits, outcome.evictions) == (7, 5, 4)

    def test_compulsory(self):
        outcome = compulsory(self.TRACE, 3)
        assert (outcome.misses, outcome.hits) == (5, 7)

    def test_lfu(self):
        # a a b c: with two places, c must take b's place, not a's.
        assert simulate(trace_of("a", "a", "b", "c", "a", "b"), 2, "lfu").hits == 2
        # LRU loses a.
        assert simulate(trace_of("a", "a", "b", "c", "a", "b"), 2, "lru").hits == 1

    def test_members_of_a_group_do_not_push_each_other_out(self):
        # LRU alone would evict a (the oldest) for c, although a is of the same group.
        outcome = simulate(trace_of("ab", "ca", "ca"), 2, "lru")
        assert (outcome.hits, outcome.misses) == (3, 3)

    def test_a_group_that_does_not_fit_is_streamed(self):
        # Three of three places' worth of misses in two places; then b and c, the last two, are there.
        outcome = simulate(trace_of("abc", "bc"), 2, "lru")
        assert (outcome.hits, outcome.misses) == (2, 3)
        # The optimum keeps what comes next, whatever that is.
        assert belady(trace_of("abc", "ab"), 2).hits == 2

    def test_bytes_and_mixed_sizes(self):
        outcome = simulate(trace_of("a", "b", "c", "a"), 10, "lru", sizes={"a": 4, "b": 4, "c": 8})
        # c needs both places of a and b.
        assert (outcome.misses, outcome.bytes_read, outcome.evictions) == (4, 20, 3)
        assert belady(trace_of("a", "b", "c", "a"), 10, sizes={"a": 4, "b": 4, "c": 8}).bytes_read == 20

    def test_scope_layer_gives_each_layer_its_share(self):
        groups = trace_of("a", "x", "b", "y", "a", "x", layers=2)
        assert simulate(groups, 4, "lru", scope="layer").hits == 2
        assert simulate(groups, 2, "lru", scope="layer").hits == 0
        # Layer 0 alone is busy: sharing helps it.
        lopsided = [Group(step=n, layer=0, keys=(key,)) for n, key in enumerate("abcabc")]
        lopsided.append(Group(step=0, layer=1, keys=("x",)))
        assert simulate(lopsided, 4, "lru").hits == 3
        assert simulate(lopsided, 4, "lru", scope="layer").hits == 0
        assert belady(lopsided, 4, scope="layer").hits == 2

    def test_a_prefill_does_not_flush_what_decoding_warmed(self):
        warm = [Group(step=n, layer=0, keys=("a", "b")) for n in range(2)]
        after = [Group(step=9, layer=0, keys=("a", "b"))]
        for name in POLICY_NAMES:
            scan = [Group(step=5, layer=0, keys=tuple("cdefgh"), prefill=True)]
            assert simulate(warm + scan + after, 3, name).hits == 4
            scan = [Group(step=5, layer=0, keys=tuple("cdefgh"))]
            assert simulate(warm + scan + after, 3, name).hits < 4

    def test_the_caller_can_bring_a_policy(self):
        assert simulate(self.TRACE, 3, LruPolicy).misses == 10
        assert simulate(self.TRACE, 3, LruPolicy).policy == "LruPolicy"

    def test_compare_lists_the_policies_and_then_the_bounds(self):
        names = [outcome.policy for outcome in compare(self.TRACE, 3)]
        assert names == [*POLICY_NAMES, "belady", "compulsory"]


class TestWarm:
    def test_warmed_keys_are_resident_at_first_and_the_least_valuable_leaves_first(self):
        trace = trace_of("ac", "x", "a", "c")
        cold = simulate(trace, 3, "lru")
        warmed = simulate(trace, 3, "lru", warm=["a", "b", "c", "d"])
        assert (cold.hits, warmed.hits) == (2, 4)
        # d did not fit, b was the last that had not been used.
        assert simulate(trace_of("x", "y", "a", "b"), 3, "lru", warm="abc").hits == 1

    @pytest.mark.parametrize("policy", POLICY_NAMES)
    def test_each_policy_can_be_warmed(self, policy):
        trace = trace_of(*["ab", "cd", "ef"] * 4)
        assert simulate(trace, 6, policy, warm="abcdef").misses == 0

    def test_only_one_capacity_for_all_layers_can_be_warmed(self):
        with pytest.raises(UsageError, match="one capacity"):
            simulate(trace_of("a"), 1, "lru", scope="layer", warm="a")

    def test_trust_is_told_what_to_expect(self):
        trace = trace_of(*"abcadae")
        assert simulate(trace, 2, "trust", expected={"a": 0.9}).misses == 5


class TestRefusals:
    def test_unknown_names(self):
        with pytest.raises(UsageError, match="Did you mean 'lru'"):
            simulate([], 1, "lruu")
        with pytest.raises(UsageError, match="scope"):
            simulate([], 1, "lru", scope="layers")

    def test_a_capacity_below_one_record(self):
        for run in (lambda: simulate(trace_of("a"), 3, "lru", sizes=4), lambda: belady(trace_of("a"), 3, sizes=4)):
            with pytest.raises(UsageError, match="4 bytes"):
                run()
        with pytest.raises(UsageError, match="positive"):
            compulsory([], 0)

    def test_a_key_twice_in_a_group(self):
        with pytest.raises(UsageError, match="twice"):
            trace_of("aa")

    def test_a_policy_that_names_nobody(self):
        class Stubborn(LruPolicy):
            def victims(self, needed_bytes, is_evictable):
                return []

        with pytest.raises(UsageError, match="no victim"):
            simulate(trace_of("a", "b"), 1, Stubborn)


class TestOrder:
    @given(trace=traces(scans=True), capacity=st.integers(1, 12), scope=st.sampled_from(["global", "layer"]))
    def test_no_policy_beats_belady_and_belady_no_compulsory_miss(self, trace, capacity, scope):
        layers = len({group.layer for group in trace})
        capacity = max(capacity, layers)
        *policies, optimum, bound = compare(trace, capacity, scope=scope)
        for outcome in policies:
            assert outcome.hits <= optimum.hits
            assert outcome.requests == outcome.hits + outcome.misses == bound.requests
        assert optimum.hits <= bound.hits

    @given(trace=traces(largest_group=1))
    def test_belady_is_the_optimum_by_exhaustive_search(self, trace):
        assert belady(trace[:9], 2).misses == _least_misses([group.keys[0] for group in trace[:9]], 2)

    @given(trace=traces(largest_group=1), capacity=st.integers(1, 10))
    def test_lru_has_the_stack_property(self, trace, capacity):
        assert simulate(trace, capacity, "lru").hits <= simulate(trace, capacity + 1, "lru").hits

    @given(trace=traces(), capacity=st.integers(1, 10))
    def test_belady_gains_from_room(self, trace, capacity):
        assert belady(trace, capacity).hits <= belady(trace, capacity + 1).hits

    @given(trace=traces(), capacity=st.integers(24, 40))
    def test_when_everything_fits_only_compulsory_misses_remain(self, trace, capacity):
        outcomes = compare(trace, capacity)
        assert {outcome.hits for outcome in outcomes} == {outcomes[-1].hits}
        assert all(outcome.evictions == 0 for outcome in outcomes)


def _least_misses(keys, capacity):
    states = {frozenset(): 0}
    for key in keys:
        following = {}
        for resident, misses in states.items():
            if key in resident:
                choices = [(resident, misses)]
            elif len(resident) < capacity:
                choices = [(resident | {key}, misses + 1)]
            else:
                choices = [((resident - {victim}) | {key}, misses + 1) for victim in resident]
            for state, cost in choices:
                following[state] = min(cost, following.get(state, cost))
        states = following
    return min(states.values())
