"""The policy that knows beforehand, against its formula and against the one that must learn."""

import math

import numpy as np
import pytest

from coterie.errors import UsageError
from coterie.eviction import Group, TrustPolicy, check_policy, make_policy, simulate
from coterie.eviction.visit_history import Visit, VisitHistory

LAYERS, EXPERTS, TOP_K = 6, 24, 3


def always(key):
    return True


def learned(expected=None):
    """One bank after some visits, of which something was expected or not."""
    history = VisitHistory()
    history.reserve(1, 5)
    if expected is not None:
        for number, likelihood in enumerate(expected, start=1):
            history.expect(0, number, likelihood)
    visit = Visit(0)
    for members in ((1, 2), (2, 3), (1, 2)):
        visit.begin()
        visit.members.update(dict.fromkeys(members))
        history.learn([visit])
    return history.likelihood[0, 1:6]


def test_what_is_expected_counts_half_beside_the_use_that_was_seen():
    # use' = (use + expected) / 2 has the weight 0.92 · 6 / (weights of the visits that followed + 6). The last of three
    # visits is as the first, from which both others followed; the second, which has half in common, counts less.
    nothing, something = learned([0.0] * 5), learned([0, 0, 0, 0.4, 0.8])
    decay = math.exp(-1 / 0.35)
    # Beside the last visit the one before counts too: it had half in common with the one before it.
    one_ago, two_ago = (1 - decay) * (0.5 + decay * 0.5), 1 - decay
    weight = 0.92 * 6 / (1 + 0.6 + math.exp(14 * (one_ago - two_ago)) + 6)
    np.testing.assert_allclose(something - nothing, weight * np.array([0, 0, 0, 0.2, 0.4]), rtol=1e-4, atol=1e-6)


def test_what_is_expected_decides_until_something_is_known():
    policy = TrustPolicy({(0, "a"): 0.1, (0, "b"): 0.9, (0, "c"): 0.5})
    for key in "abc":
        policy.insert((0, key), 1)
    assert [key for _, key in policy.victims(3, always)] == ["a", "c", "b"]
    policy.expect({(0, "a"): 0.9, (0, "b"): 0.1, (0, "c"): 0.5})
    for layer in (1, 2, 3, 0):
        # A visit of its bank later it counts.
        policy.insert((layer, "x"), 1)
    policy.insert((1, "y"), 1)
    order = [key for layer, key in policy.victims(8, always) if layer == 0]
    assert order.index("b") < order.index("c") < order.index("a")


def routing(steps, seed):
    """Each layer has favourites; returns the groups and how often each expert is used per step."""
    rng = np.random.default_rng(seed)
    logits = np.random.default_rng(99).normal(scale=1.5, size=(LAYERS, EXPERTS))
    groups, counts = [], {}
    for step in range(steps):
        for layer in range(LAYERS):
            chosen = np.argsort(-(logits[layer] + rng.gumbel(size=EXPERTS)))[:TOP_K].tolist()
            groups.append(Group(step=step, layer=layer, keys=tuple((layer, expert) for expert in chosen)))
            for expert in chosen:
                counts[layer, expert] = counts.get((layer, expert), 0) + 1
    return groups, {key: count / steps for key, count in counts.items()}


@pytest.mark.parametrize("residency", [0.25, 0.5])
def test_a_profile_of_the_same_kind_of_text_saves_misses(residency):
    _, expected = routing(400, seed=0)
    groups, _ = routing(60, seed=1)
    capacity = int(residency * LAYERS * EXPERTS)
    worth = sorted(expected, key=lambda key: -expected[key])
    markov = simulate(groups, capacity, "markov")
    trust = simulate(groups, capacity, "trust", expected=expected)
    warmed = simulate(groups, capacity, "trust", expected=expected, warm=worth)
    assert warmed.misses < trust.misses < markov.misses


def test_trust_needs_to_know_what_to_expect():
    with pytest.raises(UsageError, match="--profile"):
        make_policy("trust")
    with pytest.raises(UsageError, match="trust"):
        check_policy("trsut", profile=True)
    assert isinstance(make_policy("trust", {}), TrustPolicy)
