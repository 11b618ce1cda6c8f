"""Memory as callers ask for it: what is refused, what is advised, and what the process really takes."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import pytest
import torch

from coterie.engine import load, open_source
from coterie.errors import ContextLengthError, MemoryBudgetError, UsageError
from zoo import ZOO, logits

BF16 = torch.bfloat16


@pytest.fixture
def store(zoo_store):
    return zoo_store("qwen3_moe", BF16)


@pytest.fixture
def total(store):
    experts = open_source(store).experts
    return sum(experts.layout(key).nbytes for key in experts.keys())


@pytest.mark.parametrize(
    ("given", "share"), [("100%", 1), ("50%", 1 / 2), (" 25 % ", 1 / 4), ("12.5%", 1 / 8)], ids=str
)
def test_a_share_of_all_experts(given, share, store, total, open_model):
    assert open_model(store, expert_memory=given).coterie.stats().capacity == int(total * share)


@pytest.mark.parametrize("given", [65536, "65536", "64KiB", "64 KiB", "0.0625MiB"], ids=repr)
def test_bytes(given, store, open_model):
    assert open_model(store, expert_memory=given).coterie.stats().capacity == 65536


def test_more_than_all_experts_is_all_experts(store, total, open_model):
    assert open_model(store, expert_memory="1GiB").coterie.stats().capacity == total


def test_a_share_is_of_all_experts_also_where_some_are_absent(zoo_store, total, open_model):
    partial = zoo_store("qwen3_moe", BF16, "0-3")
    model = open_model(partial, missing="drop", expert_memory="25%")
    assert model.coterie.stats().capacity == total // 4


@pytest.mark.parametrize("given", ["0%", "-5%", "101%", "%", "many%", "lots", "", "8 GBytes", 0, -1, "-1"], ids=repr)
def test_what_is_no_amount_is_refused(given, store):
    with pytest.raises(UsageError):
        load(store, expert_memory=given)


@pytest.mark.parametrize("given", [1, "4KiB", "1%"])
def test_below_the_minimum_is_refused_with_the_amount_that_does(given, store, open_model):
    with pytest.raises(MemoryBudgetError) as caught:
        load(store, expert_memory=given)
    assert caught.value.minimum == open_source(store).footprint.least_experts
    named = re.search(r"at least (\d+) are needed", str(caught.value))
    model = open_model(store, expert_memory=int(named[1]))
    assert logits(model, ZOO["qwen3_moe"].inputs()).isfinite().all()
    with pytest.raises(MemoryBudgetError):
        load(store, expert_memory=int(named[1]) - 1)


@pytest.mark.parametrize("kind", ["checkpoint", "store"])
def test_a_budget_that_is_too_small_names_one_that_does(kind, zoo_checkpoint, zoo_store, open_model):
    path = {"checkpoint": zoo_checkpoint, "store": zoo_store}[kind]("qwen3_moe", BF16)
    with pytest.raises(MemoryBudgetError) as caught:
        load(path, memory="20MiB", max_context=64)
    named = re.search(r'memory="(\w+)" would do', str(caught.value))
    model = open_model(path, memory=named[1], max_context=64)
    plan = model.coterie.plan
    assert plan.budget == caught.value.minimum
    assert (
        plan.process + plan.kv_cache + plan.activations + plan.io_buffers + plan.libraries + plan.margin
        <= plan.budget - plan.arena
    )
    assert model.coterie.stats().capacity <= plan.arena


@pytest.mark.parametrize("budget", ["8GiB", 8 << 30])
def test_a_budget_as_text_or_number(budget, store, total, open_model):
    model = open_model(store, memory=budget)
    assert model.coterie.plan.budget == 8 << 30
    assert model.coterie.stats().capacity == total


def test_without_a_budget_the_machine_is_asked(store, monkeypatch):
    monkeypatch.setattr("coterie.engine.opening.default_memory_budget", lambda: 8 << 30)
    model = load(store)
    assert model.coterie.plan.budget == 8 << 30
    model.coterie.close()


def test_expert_memory_within_a_budget(store, total, open_model):
    model = open_model(store, memory="8GiB", expert_memory="25%")
    assert model.coterie.stats().capacity == total // 4
    with pytest.raises(MemoryBudgetError, match="leaves"):
        load(store, memory="8GiB", expert_memory="8GiB")


def test_a_small_arena_is_advised_against(store, total):
    # One token uses 2 of 8 experts of each of 2 layers: a quarter of all. Twice that is half of all.
    with pytest.warns(UserWarning, match="less than twice") as caught:
        load(store, expert_memory=total // 2 - 4096).coterie.close()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(store, expert_memory=total // 2).coterie.close()


def test_the_working_set(store, total, open_model):
    assert open_model(store).coterie.working_set == total // 4
    assert open_model(store, experts_per_token=4).coterie.working_set == total // 2


# --- context ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"memory": "8GiB"}, {"expert_memory": "100%"}], ids=str)
def test_more_tokens_than_provided_for_are_refused(options, store, open_model):
    model = open_model(store, max_context=30, **options)
    inputs = ZOO["qwen3_moe"].inputs(length=24)
    assert model.generate(**inputs, max_new_tokens=6, do_sample=False).shape == (1, 30)
    with pytest.raises(ContextLengthError, match="1 × 31 tokens are more than the 30") as caught:
        model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert (caught.value.tokens, caught.value.max_context) == (31, 30)
    with pytest.raises(ContextLengthError, match="2 × 24"):
        logits(model, ZOO["qwen3_moe"].inputs(batch=2))
    assert logits(model, inputs).isfinite().all(), "the model goes on working"


def test_the_default_context_is_what_the_model_was_made_for(store, open_model):
    model = open_model(store, memory="8GiB")
    assert model.coterie.plan.max_context == 256
    with pytest.raises(ContextLengthError):
        model(input_ids=torch.ones(1, 257, dtype=torch.int64))


def test_every_component_is_limited(zoo_store, open_model):
    model = open_model(zoo_store("qwen3_omni", BF16), memory="8GiB", max_context=40)
    inputs = ZOO["qwen3_omni"].inputs(length=32)
    with pytest.raises(ContextLengthError):
        model.generate(**inputs, thinker_max_new_tokens=5, talker_max_new_tokens=60, talker_min_new_tokens=60)


# --- what the process takes -------------------------------------------------------------------------------------------

MEASURE = """
import re, sys, warnings
import torch
torch.set_num_threads(1)
from coterie.engine import load
from coterie.errors import MemoryBudgetError

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

warnings.simplefilter("ignore")
try:
    load("bundled", memory="100MiB", max_context=600)
except MemoryBudgetError as error:
    least = error.minimum
model = load("bundled", memory=least + int(sys.argv[1]), max_context=600)
stats = model.coterie.stats()
assert stats.capacity < stats.total_expert_bytes, "the arena must be short for this to show anything"
ids = torch.randint(20, 8000, (2, 280), generator=torch.Generator().manual_seed(1))
model.generate(ids, max_new_tokens=20, do_sample=False)
assert model.coterie.stats().total.evictions > 0
print(model.coterie.plan.budget, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("extra", [0, pytest.param(3 << 20, marks=pytest.mark.slow)])
def test_the_process_stays_within_the_budget_that_was_named(extra):
    """In a process of its own, at the least budget and a little more; the peak is the kernel's own figure."""
    command = [sys.executable, "-c", MEASURE, str(extra)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    budget, peak = map(int, run.stdout.split())
    assert peak <= budget
