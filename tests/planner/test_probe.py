"""A probe: what a text chose is what is replayed, and the forecast says so."""

from __future__ import annotations

import pytest

from coterie.errors import UsageError
from coterie.eviction import simulate
from coterie.planner import plan
from coterie.planner.hit_rates import Law
from coterie.planner.probe import PROBE_TOKENS, Probe, probe
from coterie.spec.opening import Opening

from .machines import a_machine

TEXT = "A library keeps far more books than its reading room has seats for, and most of them stay in the stacks. " * 12
LAW = Law(experts=32)


@pytest.fixture(scope="module")
def probed() -> Probe:
    opening = Opening(memory="4GiB", max_context=PROBE_TOKENS)
    return probe("bundled", TEXT, opening, component="thinker", experts=256, law=LAW, top_k=4)


def test_each_token_asks_each_layer_for_its_experts(probed: Probe) -> None:
    assert probed.tokens == PROBE_TOKENS
    assert len(probed.groups) == 8 * PROBE_TOKENS
    assert {len(group.keys) for group in probed.groups} == {4}
    assert [group.step for group in probed.groups[:9]] == [0] * 8 + [1]


def test_the_forecast_is_the_replay(probed: Probe) -> None:
    found = probed.at(0.25, top_k=4)
    assert found.grade == "probe"
    whole, first = (simulate(groups, 64, "markov") for groups in (probed.groups, probed.groups[: 4 * PROBE_TOKENS]))
    settled = (whole.hits - first.hits) / (whole.requests - first.requests)
    assert found.rate.expected == pytest.approx(settled)
    assert found.miss.low == pytest.approx((1 - settled) / 1.25)
    assert found.miss.high == pytest.approx((1 - whole.hit_rate) * 1.25)
    assert settled > whole.hit_rate
    assert probed.at(1.0, top_k=4).rate.expected == 1.0
    assert probed.at(0.5, top_k=4).rate.expected > found.rate.expected
    assert probed.at(0.25, top_k=2).rate.expected > found.rate.expected


def test_a_plan_with_a_probe_says_so() -> None:
    budgets = plan("bundled", memory=["720MiB", "730MiB", "4GiB"], probe=TEXT, machine=a_machine()).budgets
    partly = [one for one in budgets if 0 < one.share < 1]
    assert {one.hit_rate.grade for one in partly} <= {"probe"}
    assert budgets[-1].share == 1


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(UsageError, match="at least 32 are needed"):
        plan("bundled", memory="4GiB", probe="A short text.", measure=False)


def test_where_the_model_will_not_run_there_is_nothing_to_probe() -> None:
    found = plan("bundled", memory="400MiB", probe=TEXT, measure=False).budgets[0]
    assert found.hit_rate is None
    assert found.why_not
    assert found.memory.minimum > found.memory.memory
