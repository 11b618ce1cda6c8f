"""The report of a replay against single simulations, and the knee against curves worked out by hand."""

import numpy as np
import pytest

from coterie.errors import UsageError
from coterie.eviction import belady, knee, read_trace, replay, simulate, simulations


@pytest.fixture
def trace(tmp_path):
    ids = np.random.default_rng(0).integers(0, 8, (60, 3, 1)) + np.array([0, 8])
    np.savez(tmp_path / "t.npz", expert_ids=ids.astype(np.uint16), sequence_lengths=[60], num_experts=16)
    return read_trace(tmp_path / "t.npz")


def test_rows_are_what_simulations_give(trace):
    done = []
    report = replay(trace, [9, 24], policies=("markov", "lfu"), expert_nbytes=10, progress=lambda: done.append(1))
    assert len(done) == simulations([9, 24], ("markov", "lfu"), ("global", "layer"))
    assert [(row.scope, row.capacity, row.policy) for row in report.rows] == [
        (scope, capacity, policy)
        for scope in ("global", "layer")
        for capacity in (9, 24)
        for policy in ("markov", "lfu", "belady")
    ]
    for row in report.rows:
        bound = belady(trace.groups, row.capacity, scope=row.scope)
        lru = simulate(trace.groups, row.capacity, "lru", scope=row.scope)
        own = bound if row.policy == "belady" else simulate(trace.groups, row.capacity, row.policy, scope=row.scope)
        assert (row.hit_rate, row.misses) == (own.hit_rate, own.misses)
        assert row.bytes_per_token == pytest.approx(own.misses * 10 / 60)
        assert row.gap_closed == pytest.approx((own.hits - lru.hits) / (bound.hits - lru.hits))
    assert report.compulsory_hit_rate == 1 - len({k for g in trace.groups for k in g.keys}) / report.requests
    assert (report.requests, report.experts, report.working_set) == (360, 48, 6)


def test_an_unbent_curve_has_no_knee_and_a_bent_one_has_it_at_the_bend():
    assert knee([(x, x) for x in range(5)]) is None
    assert knee([(x, 1.0) for x in range(5)]) is None
    assert knee([(x, x * x) for x in range(5)]) is None
    assert knee([(0, 0), (1, 1)]) is None
    assert knee([(0, 0), (1, 5), (2, 8), (3, 8.5), (4, 9)]) == 2
    # Scaled axes: units do not matter.
    assert knee([(0, 0), (100, 0.5), (200, 0.8), (300, 0.85), (400, 0.9)]) == 2


def test_the_knee_is_a_point_of_lrus_curve(trace):
    found = replay(trace, [24], policies=("lru",), scopes=("global",)).knee
    assert found is not None
    assert found.hit_rate == simulate(trace.groups, found.capacity, "lru").hit_rate
    assert found.residency == found.capacity / 48


def test_too_little_for_every_layer_is_refused(trace):
    with pytest.raises(UsageError, match="do not divide among 3 layers"):
        replay(trace, [2])
    assert replay(trace, [2], scopes=("global",)).rows
    with pytest.raises(UsageError, match="Did you mean 'markov'"):
        replay(trace, [24], policies=("markow",))
