"""Two models in one process: whatever budget is not refused, both open, and what the process takes is counted once."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import MemoryBudgetError
from coterie.evaluate import memory
from coterie.evaluate.memory import share_memory, workspace_nbytes
from coterie.plan.budget import divide, plan_memory
from coterie.spec import ContextShape
from coterie.spec.footprint import Footprint

MIB = 1 << 20
PROCESS = 400 * MIB
CONTEXT = 512


def source(dense: int, experts: int, record: int):
    """What stands for a model in the division of memory; sizes in MiB."""
    shape = ContextShape(
        hidden=2048,
        attention=4096,
        kv_per_token=96 << 10,
        kv_per_copy=2 << 10,
        intermediate=768,
        experts=128,
        top_k=8,
        vocabulary=32000,
        itemsize=2,
    )
    footprint = Footprint(
        dense=dense * MIB,
        shape=shape,
        reading=8 * record * MIB,
        dequantising=0,
        record=record * MIB,
        experts=experts * record * MIB,
        all_experts=experts * record * MIB,
    )
    return SimpleNamespace(footprint=footprint)


@pytest.fixture(autouse=True)
def _a_process(monkeypatch):
    monkeypatch.setattr(memory, "process_memory", lambda: SimpleNamespace(total=PROCESS))
    monkeypatch.setattr(memory, "promised_nbytes", lambda: 0)


def opened(full, model, shares, leavings=(0, 0)):
    """Divides memory as opening one model after the other does: the second finds what the first holds or may take."""
    first, second = full.footprint, model.footprint
    held = PROCESS + first.dense + leavings[0]
    one = plan_memory(shares.full, first, CONTEXT, process=held)
    held += one.arena + one.kv_cache + one.activations + one.io_buffers
    two = plan_memory(shares.model, second, CONTEXT, process=held + second.dense + leavings[1])
    return one, two


SIZES = st.tuples(st.integers(1, 4000), st.integers(4, 400), st.integers(1, 40))


@settings(max_examples=60)
@given(SIZES, SIZES, st.integers(0, 40_000), st.booleans())
def test_what_is_not_refused_opens(one, other, more, leaves):
    full, model = source(*one), source(*other)
    with pytest.raises(MemoryBudgetError) as caught:
        share_memory(model, full, memory=MIB, expert_memory=None, context=CONTEXT, inputs=CONTEXT)
    least = caught.value.minimum
    with pytest.raises(MemoryBudgetError):
        share_memory(model, full, memory=least - MIB, expert_memory=None, context=CONTEXT, inputs=CONTEXT)
    shares = share_memory(model, full, memory=least + more * MIB, expert_memory=None, context=CONTEXT, inputs=CONTEXT)
    assert shares.full <= shares.model == least + more * MIB - workspace_nbytes(full, CONTEXT, models=2)
    opened(full, model, shares, (16 * MIB, 16 * MIB) if leaves else (0, 0))


def test_libraries_and_the_margin_are_counted_once():
    full, model = source(900, 64, 10), source(300, 64, 5)
    with pytest.raises(MemoryBudgetError) as caught:
        share_memory(model, full, memory=MIB, expert_memory=None, context=CONTEXT, inputs=CONTEXT)
    least = caught.value.minimum
    plans = [divide(least, one.footprint, CONTEXT, process=one.footprint.dense) for one in (full, model)]
    twice = sum(
        plan.rest + plan.margin + one.footprint.least_experts for plan, one in zip(plans, (full, model), strict=True)
    )
    together = plans[0].libraries + plans[0].margin
    needed = PROCESS + twice - together + workspace_nbytes(full, CONTEXT, models=2)
    assert together > 100 * MIB
    # Beside it, only what loading may leave behind, twice, and whole MiB.
    assert needed <= least <= needed + 40 * MIB


def test_logits_have_memory_for_windows_alone():
    full, model = source(500, 256, 12), source(300, 128, 12)
    said = {"memory": 4 << 30, "expert_memory": None, "context": CONTEXT}
    shares = [share_memory(model, full, **said, inputs=inputs) for inputs in (0, CONTEXT)]
    freed = workspace_nbytes(full, CONTEXT, models=2) - workspace_nbytes(full, 0, models=2)
    assert shares[0].model - shares[1].model == freed > 0


def test_experts_are_shared_by_their_bytes():
    full, model = source(500, 256, 12), source(300, 128, 12)
    shares = share_memory(model, full, memory=4 << 30, expert_memory=None, context=CONTEXT, inputs=CONTEXT)
    one, two = opened(full, model, shares)
    assert one.arena + two.arena < full.footprint.experts
    assert one.arena / two.arena == pytest.approx(2, rel=0.15)
    shares = share_memory(model, full, memory=64 << 30, expert_memory=None, context=CONTEXT, inputs=CONTEXT)
    assert [plan.arena for plan in opened(full, model, shares)] == [256 * 12 * MIB, 128 * 12 * MIB]
