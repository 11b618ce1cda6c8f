import numpy as np
import pytest

from coterie.errors import UsageError
from coterie.eviction import POLICY_NAMES, read_trace, simulate, timeline


@pytest.fixture
def trace(tmp_path):
    ids = np.random.default_rng(0).integers(0, 8, (60, 3, 1)) + np.array([0, 8])
    np.savez(tmp_path / "t.npz", expert_ids=ids.astype(np.uint16), sequence_lengths=[60], num_experts=16, model="tiny")
    return read_trace(tmp_path / "t.npz")


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_steps_add_up_to_the_simulation(trace, policy):
    found = timeline(trace, 20, policy)
    outcome = simulate(trace.groups, 20, policy)
    assert sum(step.hits for step in found.steps) == outcome.hits
    assert sum(step.requests for step in found.steps) == outcome.requests
    assert found.hit_rate == outcome.hit_rate
    assert [step.step for step in found.steps] == list(range(60))
    assert [(one.component, one.layer, one.bank) for one in found.layers] == [("text", n, "mlp") for n in range(3)]
    assert found.steps[0].resident == (2, 2, 2)
    assert found.steps[0].hits == 0
    assert all(sum(step.resident) <= 20 for step in found.steps)
    assert sum(found.steps[-1].resident) == 20


def test_with_room_for_all_only_first_uses_miss(trace):
    found = timeline(trace, 48, "lru")
    residents = [sum(step.resident) for step in found.steps]
    assert residents == sorted(residents)
    misses = np.cumsum([step.requests - step.hits for step in found.steps])
    assert misses.tolist() == residents


def test_unknown_policies_are_refused(trace):
    with pytest.raises(UsageError, match="lfru"):
        timeline(trace, 20, "lfruu")
