"""What the last tokens of a prompt used: what is kept of it, and what a policy is told."""

from collections import Counter

import pytest

from coterie.eviction import EvictionPolicy, Group, LruPolicy, MarkovPolicy, Observing, PromptUse, make_policy, simulate


def test_what_was_used_most_and_last_is_kept():
    visits = [["a", "b"], ["a", "c"], ["a", "d"]]
    assert list(PromptUse(visits, 1).kept) == ["a"]
    assert list(PromptUse(visits, 2).kept) == ["a", "d"]
    assert list(PromptUse(visits, 9).kept) == ["a", "d", "c", "b"]
    assert not PromptUse(visits, 0).kept


def test_a_use_long_ago_counts_less_than_a_late_one():
    assert PromptUse([["old"], ["old"], *([["other"]] * 40), ["new"]], 2).kept.keys() == {"other", "new"}


def test_a_policy_that_observes_is_told_all_and_others_of_hits():
    class Seen(LruPolicy):
        def __init__(self):
            super().__init__()
            self.hits = Counter()
            self.hit = lambda key: self.hits.update([key])

    class Observer(Seen):
        visits = None

        def observe(self, visits):
            self.visits = visits

    use = PromptUse([["a"], ["b"]], 2)
    plain, observing = Seen(), Observer()
    for policy in (plain, observing):
        policy.insert("a", 1)
        use.tell(policy, {"a": 1}, lambda key: False)
    assert plain.hits == {"a": 1}
    assert observing.visits == [["a"], ["b"]]
    assert not observing.hits


def test_the_default_policy_observes():
    assert isinstance(MarkovPolicy(), Observing)
    assert not isinstance(LruPolicy(), Observing)


@pytest.mark.parametrize("name", ["markov", "lru", "lfu", "lfru"])
def test_what_a_prompt_used_last_is_there_for_the_next_token(name):
    """Of four layers of 16, one prompt asks for all; its last tokens for the same four of each."""
    layers, wanted = 4, range(9, 13)
    prompt = [
        Group(
            step=0,
            layer=layer,
            keys=tuple((layer, expert) for expert in range(16)),
            prefill=True,
            last=tuple(tuple((layer, expert) for expert in wanted) for _ in range(3)),
        )
        for layer in range(layers)
    ]
    token = [Group(step=1, layer=layer, keys=tuple((layer, expert) for expert in wanted)) for layer in range(layers)]
    unsaid = [Group(step=0, layer=one.layer, keys=one.keys, prefill=True) for one in prompt]
    served = {}
    for what, trace in (("said", prompt + token), ("unsaid", unsaid + token)):
        outcome = simulate(trace, 24, name)
        served[what] = outcome.hits
    assert served["said"] == 16
    assert served["unsaid"] <= 8


def test_every_policy_can_be_told():
    for name in ("markov", "lru", "lfu", "lfru"):
        policy: EvictionPolicy[tuple[int, int]] = make_policy(name)
        policy.insert((0, 1), 1)
        policy.insert((0, 2), 1, cold=True)
        PromptUse([[(0, 1)], [(0, 3)]], 2).tell(policy, {(0, 1): 1}, lambda key: False)
        policy.insert((0, 3), 1)
        assert policy.victims(1, lambda key: True) == [(0, 2)]
