"""What is counted of what routers choose."""

import numpy as np
import pytest

from coterie.server import demand as module
from coterie.server.demand import Demand
from coterie.spec import BankKey, ExpertsSelected, StepStarted

BANK = BankKey("text", 0, "mlp")


def started(phase: str, tokens: int) -> StepStarted:
    return StepStarted(step=0, component="text", phase=phase, batch=1, tokens=tokens, input_ids=None)


def selected(*rows: tuple[int, ...]) -> ExpertsSelected:
    ids = np.array(rows, np.uint16)
    return ExpertsSelected(step=0, bank=BANK, expert_ids=ids, weights=np.ones(ids.shape, np.float32))


@pytest.mark.parametrize("most_aside", [0, 1 << 20])
def test_choices_steps_and_unions(monkeypatch: pytest.MonkeyPatch, most_aside: int) -> None:
    monkeypatch.setattr(module, "_MOST_ASIDE", most_aside)
    demand = Demand({BANK: 4})
    demand.on_event(started("prefill", 3))
    demand.on_event(selected((0, 1), (0, 2), (0, 1)))
    demand.on_event(started("decode", 1))
    demand.on_event(selected((3, 0)))
    # Three sequences at once; ids from 4 on are no expert's.
    demand.on_event(selected((3, 0), (3, 1), (3, 4)))
    found = demand.banks()[BANK]
    assert found.choices.tolist() == [5, 3, 1, 4]
    assert (found.steps, found.rows, found.chosen, found.union) == (2, 4, 7, 5)
    demand.on_event(selected((1, 2)))
    assert found.steps == 2
    assert demand.banks()[BANK].choices.tolist() == [5, 4, 2, 4]


def test_other_models_banks_are_passed_over() -> None:
    demand = Demand({})
    demand.on_event(selected((0, 1)))
    assert demand.banks() == {}
