"""Forecasts of hits: what was recorded lies in the printed range in nine of ten cases."""

from __future__ import annotations

import itertools
import math

import pytest

import known_models
from coterie.eviction import read_trace
from coterie.planner.hit_rates import Law
from coterie.planner.known_models import KnownModel, interpolated
from coterie.planner.ranges import Range

SHARES = (0.125, 0.25, 0.5)
TOKENS = 128


def recorded() -> list[tuple[str, int, int, float, str, float]]:
    """Name, experts of a layer, experts per token, share, policy and miss rate of windows of every recording."""
    found = []
    for file in sorted(known_models.DATA.glob("*.npz")):
        trace = read_trace(file)
        experts, top_k = trace.experts // trace.layers, max(len(group.keys) for group in trace.groups)
        for window in known_models.windows(trace, TOKENS, 2):
            for share in SHARES:
                miss = known_models.miss_rate(window, trace.experts, share, "markov")
                found.append((file.stem, experts, top_k, share, "markov", miss))
    return found


@pytest.mark.slow
def test_the_law_contains_what_was_recorded_in_nine_of_ten_cases() -> None:
    inside = [
        miss in Law(experts=experts, eviction=policy).at(share, top_k=top_k).miss
        for _, experts, top_k, share, policy, miss in recorded()
    ]
    assert sum(inside) >= 0.9 * len(inside)


def test_the_law_contains_what_the_shipped_table_has_in_nine_of_ten_cases() -> None:
    inside = []
    for model in known_models_table():
        for policy, points in model["miss_rates"].items():
            law = Law(experts=model["experts"], eviction=policy)
            for point in points:
                forecast = law.at(point["share"], top_k=model["top_k"]).miss
                inside += [point["low"] in forecast, point["high"] in forecast]
    assert sum(inside) >= 0.9 * len(inside)
    assert len(inside) > 100


def known_models_table() -> list[dict]:
    from coterie.planner.known_models import _table

    return _table()["models"]


def test_the_table_is_what_its_script_computes_of_the_smallest_recording() -> None:
    model = next(one for one in known_models.MODELS if one.name == "OLMoE-1B-7B")
    shipped = next(one for one in known_models_table() if one["name"] == model.name)
    assert known_models.entry(model) == shipped


def test_the_law_is_the_formula() -> None:
    law = Law(experts=128, eviction="markov")
    assert law.miss(0.25, 8) == pytest.approx(0.75 * math.exp(-0.42 * math.sqrt(32 / 8)))
    assert Law(experts=128, eviction="lru").miss(0.25, 8) == pytest.approx(0.75 * math.exp(-0.38 * 2))


def test_more_memory_never_means_fewer_hits() -> None:
    law = Law(experts=64)
    rates = [law.at(share / 64, top_k=6).rate for share in range(1, 65)]
    for before, after in itertools.pairwise(rates):
        assert before.expected <= after.expected
        assert before.high <= after.high
    assert rates[-1] == Range(low=1.0, expected=1.0, high=1.0)


def test_less_than_one_tokens_experts_may_hit_nothing() -> None:
    assert Law(experts=64).at(5 / 64, top_k=6).rate.low == 0.0
    assert Law(experts=64).at(7 / 64, top_k=6).rate.low > 0.0


def test_a_known_model_is_interpolated_and_widened() -> None:
    half = Range(low=0.2, expected=0.3, high=0.4)
    model = KnownModel(name="m", experts=64, top_k=6, eviction="lru", points=((0.5, half),))
    miss = model.at(0.5, top_k=6).miss
    assert miss.expected == pytest.approx(0.3)
    assert (miss.low, miss.high) == (pytest.approx(0.16), pytest.approx(0.5))
    assert model.at(0.5, top_k=8).miss.expected > miss.expected > model.at(0.75, top_k=6).miss.expected
    assert interpolated(model.points, 0.25).expected == pytest.approx(0.65)
    assert (model.at(0.5, top_k=6).grade, model.at(1.0, top_k=6).rate.low) == ("known model", 1.0)
