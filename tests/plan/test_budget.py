"""A budget is divided without a remainder that nobody answers for, or refused with one that would do."""

import pytest

from coterie.errors import MemoryBudgetError
from coterie.plan.budget import ContextShape, MemoryPlan, plan_memory

MIB = 1 << 20
SHAPE = ContextShape(
    hidden=2048, attention=4096, kv_per_token=8192, intermediate=3072, experts=128, top_k=8, vocabulary=8192, itemsize=2
)


def divide(budget: int, **changes: int) -> MemoryPlan:
    given = {
        "process": 400 * MIB,
        "max_context": 1024,
        "io_buffers": 8 * MIB,
        "minimum": 20 * MIB,
        "total": 4 << 30,
        "compiled_kernels": 50 * MIB,
    }
    return plan_memory(budget=budget, shape=SHAPE, **{**given, **changes})


def test_parts_add_up_to_the_budget() -> None:
    plan = divide(2 << 30)
    parts = (plan.process, plan.kv_cache, plan.activations, plan.io_buffers, plan.libraries, plan.margin, plan.arena)
    assert sum(parts) == plan.budget == 2 << 30
    assert min(parts) > 0


def test_compiled_kernels_come_out_of_the_experts() -> None:
    assert divide(2 << 30).arena - divide(2 << 30, compiled_kernels=90 * MIB).arena == 40 * MIB


def test_the_arena_is_never_larger_than_all_experts() -> None:
    assert divide(8 << 30, total=100 * MIB).arena == 100 * MIB


def test_context_costs_more_than_its_keys_and_values() -> None:
    short, long = divide(3 << 30, max_context=512), divide(3 << 30, max_context=2048)
    assert short.arena - long.arena > 2 * SHAPE.kv_per_token * 1536


@pytest.mark.parametrize("changes", [{}, {"max_context": 4096}, {"process": 3 << 30}, {"minimum": 2 << 30}])
def test_the_advised_budget_would_do(changes: dict[str, int]) -> None:
    with pytest.raises(MemoryBudgetError) as refused:
        divide(300 * MIB, **changes)
    enough = refused.value.facts["minimum"]
    assert isinstance(enough, int)
    assert divide(enough, **changes).arena >= changes.get("minimum", 20 * MIB)
