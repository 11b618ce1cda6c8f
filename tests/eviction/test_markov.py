"""The predicting policy against its formulas written out, and on routing with and without habits."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.eviction import Group, MarkovPolicy, belady, simulate
from coterie.eviction.visit_history import Visit, VisitHistory
from coterie.spec import DEFAULT_POLICY


def always(key):
    return True


def reference_likelihood(steps, bank, expert):
    """The docstring of VisitHistory, term by term, over the whole history: of each step the visits of all banks.

    In the last step the banks after ``bank`` need not be there yet.
    """
    banks, now = len(steps[0]), len(steps) - 1
    own = [step[bank] for step in steps if bank < len(step)]

    def alike(lag):
        decay, total = math.exp(-1 / (0.35 * banks)), 0.0
        places = [(step, other) for step in range(now + 1) for other in range(banks) if (step, other) <= (now, bank)]
        for back, (step, other) in enumerate(reversed(places)):
            if lag <= step:
                present, past = steps[step][other], steps[step - lag][other]
                total += (1 - decay) * decay**back * len(present & past) / len(present)
        return total

    def mean(scale):
        decay = math.exp(-1 / scale)
        return (1 - decay) * sum(decay ** (now - n) for n, visit in enumerate(own) if expert in visit)

    likeness = {lag: alike(lag) for lag in range(1, now + 1)}
    followed = total = 0.0
    for lag, value in likeness.items():
        weight = math.exp(14 * (value - max(likeness.values())))
        for n in range(1, min(16, lag) + 1):
            total += weight * 0.6 ** (n - 1)
            followed += weight * 0.6 ** (n - 1) * (expert in own[now - lag + n])
    return 0.92 * (followed + mean(64)) / (total + 1) + 0.08 * mean(1.5)


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


def assert_predicts(history, steps):
    """Experts of the steps are numbered from 0, those of the policy from 1; all banks have had the last visit."""
    for bank in range(len(steps[0])):
        for expert in range(7):
            expected = reference_likelihood(steps, bank, expert)
            assert history.likelihood[bank, expert + 1] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@given(visits=histories)
def test_likelihood_is_what_the_formulas_say(visits):
    history, visit = VisitHistory(), Visit(0)
    history.reserve(1, 7)
    for ids in visits:
        visit.begin()
        history.learn([visit_with(visit, [expert + 1 for expert in ids])])
    assert_predicts(history, [[ids] for ids in visits])


@settings(max_examples=30)
@given(
    steps=st.lists(st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=3), min_size=4, max_size=4), min_size=1),
    cut=st.integers(1, 4),
)
def test_learning_of_several_banks_at_once_is_learning_of_each(steps, cut):
    history, visits = VisitHistory(), [Visit(bank) for bank in range(4)]
    history.reserve(4, 7)
    for step in steps:
        for bank, ids in enumerate(step):
            visits[bank].begin()
            visit_with(visits[bank], [expert + 1 for expert in ids])
        for first in range(0, 4, cut):
            history.learn(visits[first : first + cut])
    assert_predicts(history, steps)


def test_late_members_count_as_used():
    history, visit = VisitHistory(), Visit(0)
    history.reserve(1, 7)
    steps = [{1, 2}, {1, 3}, {1, 2, 4, 5, 6}, {0}, {1, 2}]
    for ids in steps[:-1]:
        visit.begin()
        history.learn([visit_with(visit, [min(ids) + 1])])
        history.learn([visit_with(visit, [expert + 1 for expert in ids])])
    visit.begin()
    history.learn([visit_with(visit, [2, 3])])
    # The last visit was learned from whole: it is the present one that decides how alike the others are.
    whole, other = VisitHistory(), Visit(0)
    whole.reserve(1, 7)
    for ids in steps:
        other.begin()
        whole.learn([visit_with(other, [expert + 1 for expert in ids])])
    np.testing.assert_allclose(history.likelihood[0, 1:8], whole.likelihood[0, 1:8], atol=0.1)
    assert (history.likelihood[0, 5:8] > 0.05).all()


@settings(max_examples=30)
@given(visits=histories, seen=st.integers(1, 29), more=st.lists(st.sets(st.integers(0, 6), min_size=1), max_size=3))
def test_visits_that_are_told_at_once_are_remembered_as_one_after_the_other(visits, seen, more):
    def made(at_once):
        history, visit = VisitHistory(), Visit(0)
        history.reserve(1, 7)

        def one_by_one(some):
            for ids in some:
                visit.begin()
                history.learn([visit_with(visit, [expert + 1 for expert in ids])])

        one_by_one(visits[:seen])
        if at_once and visits[seen:]:
            history.learn_run(visit, [[expert + 1 for expert in ids] for ids in visits[seen:]])
            assert visit.members.keys() == {expert + 1 for expert in visits[-1]}
        else:
            one_by_one(visits[seen:])
        one_by_one(more)
        return history

    told, learned = made(at_once=True), made(at_once=False)
    assert told.counts[0] == learned.counts[0] == len(visits) + len(more)
    np.testing.assert_allclose(told._sums[0, 1:], learned._sums[0, 1:], rtol=1e-4, atol=1e-9)
    # Each visit as a set of members: it does not matter in which order they were told.
    np.testing.assert_array_equal(np.sort(told._visits, axis=2), np.sort(learned._visits, axis=2))


def test_what_followed_a_moment_like_this_one_is_likely():
    """Four things are done in turn by both banks: what comes next was done longest ago."""
    history, visits = VisitHistory(), [Visit(0), Visit(1)]
    history.reserve(2, 7)
    for step in [*[0, 1, 2, 3] * 5, 0, 1, 2]:
        for visit in visits:
            visit.begin()
            visit_with(visit, [step + 1])
        history.learn(visits)
    for bank in (0, 1):
        likelihood = history.likelihood[bank, 1:5]
        # Of all that follows, discounted, the next visit is two fifths.
        assert likelihood[3] == pytest.approx(0.4, abs=0.05)
        assert likelihood[3] > likelihood[0] > likelihood[1]


def test_of_large_visits_fewer_are_remembered():
    history, visit = VisitHistory(), Visit(0)
    history.reserve(1, 100)
    kept = []
    for count in (4, 16, 64, 100, 3):
        visit.begin()
        history.learn([visit_with(visit, range(1, count + 1))])
        kept.append(history._visits.shape[1])
    assert kept == [256, 256, 64, 40, 40]
    assert history._visits.shape[2] == 100
    # The last ones are still there, latest first.
    assert [np.count_nonzero(history._visits[0, age]) for age in range(5)] == [3, 100, 64, 16, 4]


def test_what_lies_further_back_than_is_remembered_is_forgotten():
    history, visit = VisitHistory(), Visit(0)
    history.reserve(1, 5)
    for number in (1, *[2] * 300):
        visit.begin()
        history.learn([visit_with(visit, [number])])
    assert history.counts[0] == 301
    assert history.likelihood[0, 1] < 1e-3
    assert history.likelihood[0, 2] > 0.99


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
    def made(grows):
        history, visit = VisitHistory(), Visit(1)
        history.reserve(2, 7)
        history.reserve(5, 7)
        for number, ids in enumerate(visits):
            if grows and number == seen:
                history.reserve(5, experts)
            visit.begin()
            history.learn([visit_with(visit, [expert + 1 for expert in ids])])
        return history.likelihood[1, 1:8]

    np.testing.assert_allclose(made(grows=True), made(grows=False), rtol=1e-5)


def test_what_was_never_used_stays_a_normal_number():
    """Sums that decay to denormals would make every later step several times as slow."""
    history, visit = VisitHistory(), Visit(0)
    history.reserve(1, 2)
    for number in (1, *[2] * 400):
        visit.begin()
        history.learn([visit_with(visit, [number])])
    assert 0 < np.abs(history._sums[0, 1]).min() < 1e-15
    assert (np.abs(history._sums[0, :3]) > np.finfo(np.float32).tiny).all()


@given(
    steps=st.lists(st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=3, max_size=3), min_size=2),
    gone=st.sets(st.integers(0, 5)),
    now=st.integers(0, 2),
)
def test_victims_come_in_the_order_of_the_formulas(steps, gone, now):
    """Three banks in turn, so few that the order is made anew each time; the last of ``steps`` ends after ``now``."""
    policy = MarkovPolicy()
    resident = set()
    for number, step in enumerate(steps):
        for bank, ids in enumerate(step):
            if number < len(steps) - 1 or bank <= now:
                tell(policy, [[(bank, expert) for expert in sorted(ids)]], resident)
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
        known = steps if bank < now else steps[:-1]
        away = (bank - now - 1) % 3 + 1
        return 0.6 ** (away / 3) * reference_likelihood(known, bank, expert)

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
    # What was the present visit when the order was made has not been learned from either.
    used |= {(39, expert) for expert in range(4)}
    held = policy.victims(160, always)
    assert [key for key in order if key not in used] == held[:146]
    assert set(held[146:]) == used
    for key in held[:10]:
        policy.remove(key)
        resident.remove(key)
    anew = policy.victims(150, always)
    assert set(anew) == resident
    assert set(anew[-10:]) != used
    # Bank 4 is the present one: only what it uses is not known about yet.
    assert anew[-2:] == [(4, 0), (4, 1)]


@pytest.mark.parametrize("spared", [0, 1, 5, 15, 16, 40])
def test_the_first_of_those_that_may_leave_is_named_however_many_may_not(spared):
    policy, resident = MarkovPolicy(), set()
    for _ in range(3):
        tell(policy, [[(bank, expert) for expert in range(4)] for bank in range(40)], resident)
    order = policy.victims(160, always)
    stay = set(order[:spared])
    assert policy.victims(1, lambda key: key not in stay) == [order[spared]]
    assert policy.victims(160, always) == order


def test_visits_begun_ahead_of_their_turn_are_learned_from_in_the_order_of_the_banks(monkeypatch):
    """Twelve banks; a cache reads ahead for the next two, so that these are heard of before the present one."""
    together = []

    def likelihood(turns):
        policy, resident = MarkovPolicy(), set()
        for uses in ((0, 1), (0, 2)):
            tell(policy, [[(bank, expert) for expert in uses] for bank in range(12)], resident)
        policy.victims(1, always)
        with monkeypatch.context() as patch:
            add = VisitHistory._add
            patch.setattr(VisitHistory, "_add", lambda self, run: (together.append(len(run)), add(self, run)))
            # The banks in question come last, and another one is present.
            tell(policy, [[(bank, 0), (bank, 1)] for bank in (*turns, 8)], resident)
            policy._ranked_at = -math.inf
            policy.victims(1, always)
        return policy._history.likelihood[:12, :4].copy()

    in_turn = likelihood([0, 1, 2, 3, 4, 5])
    assert together == [1, 6]
    together.clear()
    np.testing.assert_array_equal(likelihood([2, 0, 1, 4, 3, 5]), in_turn)
    assert together == [1, 6]


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
        return policy._history.counts[1] + policy._visits[1].has_news

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
