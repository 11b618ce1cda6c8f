"""The predicting policy against its formulas written out, and on routing with and without habits."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.eviction import Group, MarkovPolicy, belady, simulate
from coterie.eviction.markov import Transitions, Visit
from coterie.spec import DEFAULT_POLICY

SCALES, SHARES = (1.5, 8.0, 64.0), (0.3, 0.3, 0.4)


def always(key):
    return True


def reference_likelihood(visits, expert):
    """The docstring of Transitions, term by term, over the whole history."""

    def use(j):
        total = 0.0
        for scale, share in zip(SCALES, SHARES, strict=True):
            decay = math.exp(-1 / scale)
            ages = [len(visits) - 1 - n for n, visit in enumerate(visits) if j in visit]
            total += share * (1 - decay) * sum(decay**age for age in ages)
        return total

    def after(a, j):
        following = [later for earlier, later in pairwise(visits) if a in earlier]
        return (sum(j in visit for visit in following) + 3 * use(j)) / (len(following) + 3)

    members = visits[-1]
    return 0.2 * use(expert) + 0.8 * sum(after(a, expert) for a in members) / len(members)


def tell(policy, visits, resident):
    for visit in visits:
        for key in visit:
            if key in resident:
                policy.hit(key)
            else:
                policy.insert(key, 1)
                resident.add(key)


histories = st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=30)


def visit_with(visit, numbers):
    visit.members.update(dict.fromkeys(numbers))
    return visit


def assert_predicts(transitions, bank, visits):
    """Experts of the history are numbered from 0, those of the policy from 1."""
    for expert in range(7):
        expected = reference_likelihood(visits, expert)
        assert transitions.likelihood[bank, expert + 1] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@given(visits=histories)
def test_likelihood_is_what_the_formulas_say(visits):
    transitions, visit = Transitions(), Visit(0)
    transitions.reserve(1, 7)
    for ids in visits:
        visit.begin()
        transitions.learn([visit_with(visit, [expert + 1 for expert in ids])])
    assert_predicts(transitions, 0, visits)


@given(
    steps=st.lists(st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=3), min_size=4, max_size=4), min_size=1),
    order=st.permutations(range(4)),
)
def test_learning_of_several_banks_at_once_is_learning_of_each(steps, order):
    transitions, visits = Transitions(), [Visit(bank) for bank in range(4)]
    transitions.reserve(4, 7)
    for step in steps:
        for bank, ids in enumerate(step):
            visits[bank].begin()
            visit_with(visits[bank], [expert + 1 for expert in ids])
        transitions.learn([visits[bank] for bank in order])
    for bank in range(4):
        assert_predicts(transitions, bank, [step[bank] for step in steps])


@given(visits=histories, cut=st.integers(1, 3))
def test_learning_in_pieces_is_learning_at_once(visits, cut):
    transitions, visit = Transitions(), Visit(0)
    transitions.reserve(1, 7)
    for ids in visits:
        visit.begin()
        members = [expert + 1 for expert in sorted(ids)]
        for first in range(0, len(members), cut):
            transitions.learn([visit_with(visit, members[first : first + cut])])
    assert_predicts(transitions, 0, visits)


@given(visits=histories, seen=st.integers(1, 29), more=st.lists(st.sets(st.integers(0, 6), min_size=1), max_size=3))
def test_visits_that_are_told_at_once_are_learned_as_one_after_the_other(visits, seen, more):
    transitions, visit = Transitions(), Visit(0)
    transitions.reserve(1, 7)

    def one_by_one(some):
        for ids in some:
            visit.begin()
            transitions.learn([visit_with(visit, [expert + 1 for expert in ids])])

    one_by_one(visits[:seen])
    if visits[seen:]:
        transitions.learn_run(visit, [[expert + 1 for expert in ids] for ids in visits[seen:]])
        assert visit.members.keys() == {0, *(expert + 1 for expert in visits[-1])}
        assert visit.previous.keys() == {0, *(expert + 1 for expert in visits[-2])}
    assert_predicts(transitions, 0, visits)
    one_by_one(more)
    assert_predicts(transitions, 0, visits + more)


def test_what_was_observed_is_inserted_without_a_further_use():
    policy = MarkovPolicy()
    tell(policy, [[(bank, expert) for expert in range(4)] for bank in range(5)], set())
    policy.observe([[(0, 1)], [(0, 3)], [(0, 2), (0, 3)]])
    order = policy.victims(4, lambda key: key[0] == 0)
    assert (order[0], order[-1]) == ((0, 0), (0, 3))
    for key in [(0, 1), (0, 2)]:
        # As a cache does with what a prefill has read.
        policy.remove(key)
        policy.insert(key, 1)
    assert policy.victims(4, lambda key: key[0] == 0) == order


@given(visits=histories, seen=st.integers(1, 12), experts=st.sampled_from([64, 130, 300]))
def test_growing_forgets_nothing(visits, seen, experts):
    transitions, visit = Transitions(), Visit(1)
    transitions.reserve(2, 7)
    for number, ids in enumerate(visits):
        if number == seen:
            transitions.reserve(5, experts)
        visit.begin()
        transitions.learn([visit_with(visit, [expert + 1 for expert in ids])])
    assert_predicts(transitions, 1, visits)


def test_what_was_never_used_stays_a_normal_number():
    """Sums that decay to denormals would make every later step several times as slow."""
    transitions, visit = Transitions(), Visit(0)
    transitions.reserve(1, 2)
    for number in (1, *[2] * 400):
        visit.begin()
        transitions.learn([visit_with(visit, [number])])
    assert 0 < np.abs(transitions._sums[0, 1]).min() < 1e-15
    assert (np.abs(transitions._sums[0, :3]) > np.finfo(np.float32).tiny).all()


@given(
    steps=st.lists(st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=3, max_size=3), min_size=2),
    gone=st.sets(st.integers(0, 5)),
    now=st.integers(0, 2),
)
def test_victims_come_in_the_order_of_the_formulas(steps, gone, now):
    """Three banks in turn, so few that the order is made anew each time; the last of ``steps`` ends after ``now``."""
    policy = MarkovPolicy()
    resident = set()
    history = [[], [], []]
    for number, step in enumerate(steps):
        for bank, ids in enumerate(step):
            if number < len(steps) - 1 or bank <= now:
                tell(policy, [[(bank, expert) for expert in sorted(ids)]], resident)
                history[bank].append(ids)
    for key in [key for key in resident if key[1] in gone and key[0] != now]:
        policy.remove(key)
        resident.remove(key)
    first = policy.victims(1, always)
    order = policy.victims(len(resident), always)
    assert order[:1] == first
    assert len(order) == len(resident)
    assert set(order) == resident

    def score(key):
        bank, expert = key
        # What the present visit uses is learned from when it is over.
        known = history[bank][:-1] if bank == now else history[bank]
        away = (bank - now - 1) % 3 + 1
        return 0.6 ** (away / 3) * (reference_likelihood(known, expert) if known else 0.0)

    scores = [score(key) for key in order]
    for low, high in pairwise(scores):
        assert low <= high + 1e-5


def test_the_order_holds_for_a_while_but_what_was_used_meanwhile_stays():
    """Forty banks: the order is made anew after ten evictions, or twenty banks."""
    policy, resident = MarkovPolicy(), set()
    for _ in range(3):
        tell(policy, [[(bank, expert) for expert in range(4)] for bank in range(40)], resident)
    order = policy.victims(160, always)
    for bank in range(5):
        tell(policy, [[(bank, 0), (bank, 1)]], resident)
    used = {(bank, expert) for bank in range(5) for expert in (0, 1)}
    held = policy.victims(160, always)
    assert [key for key in order if key not in used] == held[:150]
    assert set(held[150:]) == used
    for key in held[:10]:
        policy.remove(key)
        resident.remove(key)
    anew = policy.victims(150, always)
    assert set(anew) == resident
    assert set(anew[-10:]) != used
    # Bank 4 is the present one: only what it uses is not known about yet.
    assert anew[-2:] == [(4, 0), (4, 1)]


def test_what_is_learned_outlives_eviction():
    policy = MarkovPolicy()
    resident = set()
    tell(policy, [["a", "b"], ["a", "b"], ["a", "c"], ["a", "b"], ["a"]], resident)
    policy.remove("b")
    policy.insert("b", 1)
    assert policy.victims(1, always) == ["c"]


def test_the_order_of_cold_insertions_says_nothing_about_that_of_the_banks():
    def left_to_last(warmed):
        policy = MarkovPolicy()
        for layer in warmed:
            policy.insert((layer, 9), 1, cold=True)
        for layer in warmed:
            policy.remove((layer, 9))
        for layer in range(8):
            policy.insert((layer, 0), 1)
        return policy.victims(8, always)

    assert left_to_last([5, 3, 7, 0, 1, 6, 2, 4]) == left_to_last([])


def test_a_prefetch_for_another_bank_does_not_end_a_visit():
    def visits_seen(prefetched):
        policy = MarkovPolicy()
        resident = set()
        for _ in range(6):
            for bank in range(4):
                keys = [(bank, 0), (bank, 1)]
                tell(policy, [keys[:1]], resident)
                if prefetched and (bank, 1) in resident:
                    policy.hit(((bank + 1) % 4, 1))
                tell(policy, [keys[1:]], resident)
        return policy._visits[1].count

    assert visits_seen(prefetched=True) == visits_seen(prefetched=False) == 6


def test_a_bank_of_any_size_and_more_than_a_table_holds():
    policy = MarkovPolicy()
    for key in range(1500):
        policy.insert((0, key), 1)
    policy.hit((0, 3))
    policy.insert((1, 0), 1)
    victims = policy.victims(1501, always)
    assert len(set(victims)) == 1501
    assert (0, 3) in victims[-2:]


def routing(steps, layers, experts, top_k, seed):
    """Skewed, and persistent: half of a token's experts stay, others follow from those by a rule or by chance."""
    draw = random.Random(seed)
    weights = [1 / (rank + 2) for rank in range(experts)]
    present = [draw.sample(range(experts), top_k) for _ in range(layers)]
    for step in range(steps):
        for layer in range(layers):
            kept = draw.sample(present[layer], top_k // 2)
            chosen = dict.fromkeys(kept)
            for expert in kept:
                follows = draw.random() < 0.6
                chosen[(expert * 5 + layer) % experts if follows else draw.choices(range(experts), weights)[0]] = None
            while len(chosen) < top_k:
                chosen[draw.choices(range(experts), weights)[0]] = None
            present[layer] = list(chosen)[:top_k]
            yield Group(step=step, layer=layer, keys=tuple((layer, expert) for expert in present[layer]))


@pytest.mark.parametrize("residency", [0.25, 0.5])
@pytest.mark.parametrize("seed", range(2))
def test_the_default_closes_a_part_of_the_gap_between_lru_and_the_optimum(residency, seed):
    trace = list(routing(300, 6, 32, 4, seed))
    capacity = int(residency * 6 * 32)
    lru, ours, best = (
        simulate(trace, capacity, "lru").hit_rate,
        simulate(trace, capacity, DEFAULT_POLICY).hit_rate,
        belady(trace, capacity).hit_rate,
    )
    assert best - lru > 0.05
    assert ours > lru + 0.1 * (best - lru)
