"""A budget is divided without a remainder that nobody answers for, or refused with one that would do."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import MemoryBudgetError
from coterie.plan.budget import MemoryPlan, least_budget, plan_memory
from coterie.plan.compiled import compiled_kernels_nbytes
from coterie.spec import ContextShape, parse_bytes
from coterie.spec.footprint import Footprint

MIB = 1 << 20
SHAPE = ContextShape(
    hidden=2048,
    attention=4096,
    kv_per_token=8192,
    kv_per_copy=1024,
    intermediate=3072,
    experts=128,
    top_k=8,
    vocabulary=8192,
    itemsize=2,
)


@pytest.fixture(autouse=True)
def _no_kernels_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)


def divide(budget: int, **changes: int) -> MemoryPlan:
    given = {
        "process": 400 * MIB,
        "max_context": 1024,
        "io_buffers": 8 * MIB,
        "minimum": 20 * MIB,
        "total": 4 << 30,
        "compiled_kernels": 50 * MIB,
    } | changes
    footprint = Footprint(
        dense=0,
        shape=SHAPE,
        reading=given["io_buffers"],
        dequantising=0,
        record=given["minimum"] // 2,
        experts=given["minimum"] // 2 * 2,
        all_experts=given["total"],
    )
    return plan_memory(
        budget,
        footprint,
        given["max_context"],
        process=given["process"],
        compiled_kernels=lambda _: given["compiled_kernels"],
    )


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
    assert short.arena - long.arena > 1.25 * SHAPE.kv_per_token * 1536


@pytest.mark.parametrize("changes", [{}, {"max_context": 4096}, {"process": 3 << 30}, {"minimum": 2 << 30}])
def test_the_advised_budget_would_do(changes: dict[str, int]) -> None:
    with pytest.raises(MemoryBudgetError) as refused:
        divide(300 * MIB, **changes)
    enough = refused.value.facts["minimum"]
    assert isinstance(enough, int)
    assert divide(enough, **changes).arena >= changes.get("minimum", 20 * MIB)


@given(
    budget=st.integers(1, 6 << 30),
    process=st.integers(0, 40 << 30),
    max_context=st.integers(1, 50_000),
    io_buffers=st.integers(0, 1 << 30),
    minimum=st.integers(1, 1 << 29).map(lambda half: 2 * half),
)
def test_the_advised_budget_would_do_as_it_is_written(budget: int, **changes: int) -> None:
    """As text, too: rounded to what people read it must not fall short."""
    try:
        plan = divide(budget, **changes)
    except MemoryBudgetError as refused:
        error = refused
    else:
        assert plan.arena >= changes["minimum"]
        return
    written = re.search(r'memory="(\w+)" would do', str(error))
    assert written is not None
    assert parse_bytes(written[1]) > budget
    assert divide(parse_bytes(written[1]), **changes).arena >= changes["minimum"]


def test_keys_and_values_have_room_for_copies_because_a_growing_cache_is_copied_layer_by_layer() -> None:
    assert divide(2 << 30, max_context=1000).kv_cache == (1.125 * 8192 + 1024) * 1000


def test_activations_of_a_known_shape() -> None:
    shape = ContextShape(
        hidden=10,
        attention=20,
        kv_per_token=1,
        kv_per_copy=1,
        intermediate=30,
        experts=4,
        top_k=2,
        vocabulary=100,
        itemsize=2,
    )
    width = 10 * 10 + 4 * 20 + 3 * 30 + 2 * 2 * 10
    assert shape.activation_bytes(7) == 7 * (width * 2 + 3 * 4 * 4 + 4 * 8 * 2) + 7 * 7 * 2 + 2 * 4 * 100


@pytest.mark.parametrize(("budget", "margin"), [(8 << 30, (8 << 30) // 50), (1 << 30, 64 * MIB)])
def test_the_margin_is_a_share_but_never_nothing(budget: int, margin: int) -> None:
    assert divide(budget, max_context=16).margin == margin


def test_a_refusal_says_where_the_bytes_go() -> None:
    with pytest.raises(MemoryBudgetError) as refused:
        divide(300 * MIB)
    for part in (
        "300.00 MiB is too small",
        "400.00 MiB",
        "cache of 1024 tokens 10.00 MiB",
        "fewest experts 20.00 MiB",
        "make 741.81 MiB",
    ):
        assert part in str(refused.value)
    assert refused.value.budget == 300 * MIB


def test_what_is_not_fused_or_cut_off_is_counted() -> None:
    shape = {
        "hidden": 10,
        "attention": 20,
        "kv_per_token": 1,
        "kv_per_copy": 1,
        "intermediate": 30,
        "experts": 4,
        "top_k": 2,
        "vocabulary": 100,
        "itemsize": 2,
    }
    least = ContextShape(**shape).activation_bytes(7)
    assert ContextShape(**shape, score_heads=3).activation_bytes(7) - least == 3 * 7 * 7 * (2 * 4 + 2 * 2)
    assert ContextShape(**shape, all_logits=60).activation_bytes(7) - least == 7 * 60 * 2
    assert ContextShape(**shape, last_positions=3).activation_bytes(7) - least == 2 * 100 * 2
    assert ContextShape(**shape, last_positions=64).activation_bytes(7) - least == 6 * 100 * 2


WIDE = ContextShape(
    hidden=64,
    attention=64,
    kv_per_token=1,
    kv_per_copy=1,
    intermediate=64,
    experts=4,
    top_k=2,
    vocabulary=1 << 20,
    itemsize=2,
)
"""A token's logits take 2 MiB, far more than its activations."""


def test_logits_of_all_positions_are_provided_for_as_far_as_they_are_small() -> None:
    assert WIDE.activation_bytes(8) > 8 * (2 << 20)
    assert WIDE.activation_bytes(1000) < 80 * MIB


def test_logits_take_the_room_of_activations() -> None:
    assert SHAPE.tokens_for_logits(512, 512, 4096) <= 4096
    assert WIDE.tokens_for_logits(1000, 1000, 1000) > 1000
    assert WIDE.tokens_for_logits(1000, 1, 1000) < 1000
    assert WIDE.tokens_for_logits(1000, 1000, 1000, beside=1000 * (2 << 20)) < 1000
    more = [WIDE.tokens_for_logits(8, positions, 64) for positions in range(9)]
    assert more == sorted(more)


@given(tokens=st.integers(1, 4096), share=st.integers(1, 64), max_context=st.integers(1, 4096))
def test_what_logits_are_let_in_for_is_in_the_plan(tokens: int, share: int, max_context: int) -> None:
    """Logits of a pass that counts as so many tokens fit into that share of what was planned."""
    positions = -(-tokens // share)
    taken = SHAPE.tokens_for_logits(tokens, positions, max_context)
    planned = SHAPE.activation_bytes(max_context)
    assert positions * SHAPE.vocabulary * SHAPE.itemsize * max_context <= taken * planned


def test_the_parts_of_a_refusal_add_up_and_the_margin_is_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    from coterie.errors import MemoryBudgetError
    from coterie.spec import ContextShape

    shape = ContextShape(
        hidden=1024, attention=1024, kv_per_token=1 << 14, kv_per_copy=1 << 11, intermediate=1024, experts=8,
        top_k=2, vocabulary=1000, itemsize=2,
    )  # fmt: skip
    footprint = Footprint(
        dense=0,
        shape=shape,
        reading=6 << 20,
        dequantising=2 << 20,
        record=2 << 20,
        experts=1 << 30,
        all_experts=1 << 30,
    )
    with pytest.raises(MemoryBudgetError) as caught:
        plan_memory(100 << 20, footprint, 256, process=300 << 20, compiled_kernels=lambda _: 40 << 20)
    text = str(caught.value)
    sizes = [float(number) for number in re.findall(r"([\d.]+) MiB", text)]
    budget, *parts, total = sizes
    assert budget == 100
    assert sum(parts) == pytest.approx(total, abs=0.1)
    assert "a margin 64.00 MiB" in text
    assert text.endswith("needs less.")
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "1024")
    with pytest.raises(MemoryBudgetError, match=r"needs less\. Compiled kernels may take .* LRU_CACHE_CAPACITY=1024"):
        plan_memory(100 << 20, footprint, 256, process=300 << 20)
    assert caught.value.minimum >= total * 2**20


@pytest.mark.parametrize("process", [400 * MIB, 3 << 30, 20 << 30])
def test_the_least_budget_provides_for_its_own_kernels_and_is_the_least(process: int) -> None:
    """Kernels that are compiled may take a share of the budget, so those of a larger one take more."""
    footprint = Footprint(
        dense=0, shape=SHAPE, reading=0, dequantising=0, record=10 * MIB, experts=1 << 30, all_experts=1 << 30
    )
    with pytest.raises(MemoryBudgetError) as refused:
        plan_memory(256 * MIB, footprint, 1024, process=process)
    enough = refused.value.minimum
    assert enough == least_budget(footprint, 1024, process=process)
    assert plan_memory(enough, footprint, 1024, process=process).arena >= footprint.least_experts + 16 * MIB
    assert plan_memory(enough - MIB, footprint, 1024, process=process).arena < footprint.least_experts + 16 * MIB
    with pytest.raises(MemoryBudgetError):
        plan_memory(enough - 24 * MIB, footprint, 1024, process=process)
    assert compiled_kernels_nbytes(20 << 30) > compiled_kernels_nbytes(256 * MIB) + 200 * MIB
