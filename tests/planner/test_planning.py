"""Plans of small models: they agree with what opening does, and say what would help."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from coterie.errors import UsageError
from coterie.extraction import extract
from coterie.inspection import inspect
from coterie.planner import Plan, plan

from .machines import a_machine


def planned(model: Path, *budgets: int, **options: object) -> Plan:
    return plan(model, memory=budgets, machine=a_machine(), **options)


def test_a_budget_below_the_minimum_is_refused_with_its_parts(tight: Path, least: int) -> None:
    found = planned(tight, least - 2**20, least + 2**20)
    too_small, enough = found.budgets
    assert "the fewest experts" in too_small.why_not
    assert (too_small.speed, too_small.hit_rate, too_small.gains) == (None, None, ())
    assert enough.why_not is None
    assert too_small.memory.minimum == least


def test_memory_by_part_adds_up(tight: Path, least: int) -> None:
    fit = planned(tight, least + 2**26).budgets[0].memory
    parts = fit.kv_nbytes + fit.activation_nbytes + fit.buffer_nbytes + fit.library_nbytes
    assert parts == fit.context_nbytes
    others = fit.process_nbytes + fit.dense_nbytes + fit.context_nbytes + fit.margin_nbytes
    assert fit.memory == others + fit.expert_nbytes


def test_a_larger_budget_hits_more_and_is_faster(tight: Path, least: int) -> None:
    budgets = planned(tight, *(least + (step << 20) for step in (10, 30, 60, 400))).budgets
    rates = [one.hit_rate.rate.expected for one in budgets]
    speeds = [one.speed.tokens_per_second.expected for one in budgets]
    assert rates == sorted(rates)
    assert speeds == sorted(speeds)
    assert (budgets[-1].share, rates[-1]) == (1.0, 1.0)
    assert {one.hit_rate.grade for one in budgets} == {"law"}
    for one in budgets:
        assert one.speed.tokens_per_second.low <= one.speed.tokens_per_second.expected
        assert one.speed.cold_tokens_per_second.low <= one.speed.tokens_per_second.low


def test_the_limit_is_what_has_to_be_faster(tight: Path, least: int) -> None:
    def limit(left: int, **machine: object) -> str:
        found = plan(tight, memory=least + (left << 20), machine=replace(a_machine(), **machine))
        return found.budgets[0].speed.limit

    assert limit(40, disk=a_machine(disk=1e7).disk) == "disk"
    assert limit(400) == "memory bus"
    assert limit(400, bus=1e12) == "processor"
    assert limit(1) == "memory"


def test_what_would_help(tight: Path, least: int) -> None:
    found = planned(tight, least + (40 << 20)).budgets[0]
    gains = {gain.change: gain for gain in found.gains}
    assert set(gains) == {"1 GiB more memory", "a disk twice as fast", "one bit less", "2 experts per token fewer"}
    assert all(gain.ratio > 1 for gain in found.gains)
    assert "changes the output" in gains["one bit less"].note
    assert "15.0 instead of 16.0 bits" in gains["one bit less"].note
    assert "--experts-per-token 2" in gains["2 experts per token fewer"].note
    more = planned(tight, least + (40 << 20) + 2**30).budgets[0]
    assert gains["1 GiB more memory"].ratio == pytest.approx(
        more.speed.tokens_per_second.expected / found.speed.tokens_per_second.expected
    )


def test_the_largest_context_runs_and_a_longer_one_does_not(tight: Path, least: int) -> None:
    longest = planned(tight, least + 2**20).budgets[0].largest_context
    assert longest == 512  # what the model was made for
    small = plan(tight, memory="1MiB", context=64, measure=False).budgets[0].memory.minimum
    assert small < least
    between = planned(tight, (small + least) // 2).budgets[0]
    assert 64 < between.largest_context < 512
    assert planned(tight, (small + least) // 2 + 2**24, context=between.largest_context).budgets[0].why_not is None


def test_other_precisions_are_smaller_stores(tight: Path, least: int, tmp_path: Path) -> None:
    found = planned(tight, least + (40 << 20))
    stores = {(one.scheme, one.dense_scheme): one for one in found.precisions}
    assert list(stores) == [
        ("native", "native"), ("int8", "native"), ("int8", "int8"), ("int4", "native"), ("int4", "int8"),
        ("int4", "int4"),
    ]  # fmt: skip
    sizes = [one.store_nbytes for one in found.precisions]
    assert sizes == sorted(sizes, reverse=True)
    assert stores["int4", "native"].divergence > stores["int8", "native"].divergence > 0
    extract(tight, tmp_path / "store", scheme="int4", dense_scheme="int8")
    assert plan(tmp_path / "store", memory=least, measure=False).precisions == ()
    made = inspect(tmp_path / "store")
    assert made.dense_nbytes + made.expert_nbytes == pytest.approx(stores["int4", "int8"].store_nbytes, rel=0.01)


def test_a_store_that_is_not_made_yet(tight: Path, least: int, tmp_path: Path) -> None:
    found = planned(tight, least, scheme="int4", dense_scheme="int8", disk=tmp_path)
    assert found.planned
    assert found.preparing == (f"coterie extract {tight} ./{tight.name}-int4 --scheme int4 --dense-scheme int8",)
    assert found.budgets[0].command.startswith(f"coterie chat ./{tight.name}-int4 --memory ")
    assert found.disk.path == str(tmp_path)
    assert found.disk.store_nbytes > 0
    assert found.disk.download_nbytes == 0
    assert found.disk.preparing_s.low > 0
    extract(tight, tmp_path / "store", scheme="int4", dense_scheme="int8")
    made = planned(tmp_path / "store", least)
    assert made.budgets[0].memory.dense_nbytes == found.budgets[0].memory.dense_nbytes
    assert (made.working_set_nbytes, made.expert_nbytes) == (found.working_set_nbytes, found.expert_nbytes)


def test_another_number_of_experts_per_token(tight: Path, least: int) -> None:
    usual, fewer = (planned(tight, least + 2**25, experts_per_token=k) for k in (None, 2))
    assert fewer.working_set_nbytes == usual.working_set_nbytes / 2
    assert "--experts-per-token 2" in fewer.budgets[0].command
    with pytest.raises(UsageError, match="16 experts"):
        planned(tight, least, experts_per_token=17)


def test_parts_that_only_some_requests_need(zoo_checkpoint) -> None:
    found = plan(zoo_checkpoint("qwen3_omni"), memory="4GiB", measure=False)
    assert found.component == "thinker"
    assert {part.part for part in found.dense_parts} >= {"encoders", "talker", "attention"}


def test_the_knee_lies_between_the_ends(tight: Path, least: int) -> None:
    found = planned(tight, least)
    assert least <= found.knee.memory < found.all_experts < least + (150 << 20)
    assert 0 < found.knee.share < 1
    assert planned(tight, found.all_experts).budgets[0].share == 1
    assert planned(tight, found.all_experts - 2**20).budgets[0].share < 1


def test_without_measuring_nothing_is_said_about_speed(tight: Path, least: int) -> None:
    found = plan(tight, memory=least + 2**25, measure=False)
    assert found.machine is None
    budget = found.budgets[0]
    assert (budget.speed, budget.gains) == (None, ())
    assert budget.read_per_token.high > 0


def test_a_plan_is_json(tight: Path, least: int) -> None:
    value = json.loads(json.dumps(planned(tight, least + 2**25).to_json()))
    assert value["schema_version"] == 1
    assert value["budgets"][0]["hit_rate"]["grade"] == "law"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "lots"}, "'lots' is not a size"),
        ({"context": 0}, "context must be at least 1"),
        ({"eviction": "lur"}, "eviction policy 'lur'"),
        ({"scheme": "int7"}, "int7"),
        ({"component": "encoder"}, "encoder"),
    ],
)
def test_wrong_questions(tight: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(tight, measure=False, **options)


def test_a_store_has_its_schemes(zoo_store) -> None:
    with pytest.raises(UsageError, match="has its schemes"):
        plan(zoo_store("qwen3_moe"), scheme="int4", measure=False)


def test_the_command_for_a_partial_store_says_what_is_done_about_others(
    tight: Path, least: int, tmp_path: Path
) -> None:
    extract(tight, tmp_path / "part", experts="0-7")
    command = planned(tmp_path / "part", least).budgets[0].command
    assert command.endswith("--missing mask")
    assert "--missing" not in planned(tight, least).budgets[0].command


def test_experts_in_several_schemes_count_with_the_slowest(tight: Path, least: int, tmp_path: Path) -> None:
    mixed = {"schema_version": 1, "rest": "int4", "experts": {
        f"text/mlp-layer-{layer:03d}/{expert:05d}": {"gate_up_proj": "int4", "down_proj": "int8"}
        for layer in range(4) for expert in range(16)
    }}  # fmt: skip
    extract(tight, tmp_path / "mixed", expert_schemes=mixed)
    machine = a_machine()
    slow = {**machine.products, "int8": replace(machine.products["int8"], token=machine.products["int8"].token / 50)}
    usual, slower = (
        plan(tmp_path / "mixed", memory=least * 4, machine=one).budgets[0].speed.tokens_per_second.high
        for one in (machine, replace(machine, products=slow))
    )
    assert slower < usual / 2
    assert not replace(machine, products={"bf16": machine.products["bf16"]}).knows(["int4+int8"])
