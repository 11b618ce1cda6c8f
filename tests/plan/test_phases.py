"""A budget that has no room for all of a model at once is divided by what goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coterie.errors import MemoryBudgetError
from coterie.plan.budget import divide, fits_whole, least_budget, plan_memory
from coterie.spec import ContextShape
from coterie.spec.context import SpeechShape
from coterie.spec.footprint import ROWS_NBYTES, Footprint, Part

MIB = 1 << 20
GIB = 1 << 30
TOKENS = 1024
TALKER = ContextShape(
    hidden=512,
    attention=512,
    kv_per_token=1 << 12,
    kv_per_copy=1 << 9,
    intermediate=512,
    experts=8,
    top_k=2,
    vocabulary=1000,
    itemsize=2,
)
SHAPE = ContextShape(
    hidden=2048, attention=4096, kv_per_token=5 << 12, kv_per_copy=5 << 9, intermediate=3072, experts=128, top_k=8,
    vocabulary=8192, itemsize=2, encoder_per_token=1 << 20,
    speech=SpeechShape(talker=TALKER, predictor_kv=1 << 16, kept_per_token=8192, vocoder_per_frame=4 * MIB),
)  # fmt: skip
FOOTPRINT = Footprint(
    dense=4 * GIB,
    parts=(
        Part(path="thinker.audio_tower", use="encoding", nbytes=1200 * MIB),
        Part(path="thinker.visual", use="encoding", nbytes=1000 * MIB),
        Part(path="talker", use="speaking", nbytes=400 * MIB),
    ),
    table=500 * MIB,
    shape=SHAPE,
    reading=0,
    dequantising=0,
    record=3 * MIB,
    experts=16 * GIB,
    all_experts=16 * GIB,
)
PROCESS = 400 * MIB
KERNELS = {"compiled_kernels": lambda _: 50 * MIB}


def test_what_is_always_in_memory() -> None:
    assert FOOTPRINT.lasting == 4 * GIB - 2600 * MIB - 500 * MIB + ROWS_NBYTES
    assert FOOTPRINT.parts_for("encoding") == 2200 * MIB
    assert replace(FOOTPRINT, parts=(), table=10).lasting == 4 * GIB


def test_experts_have_what_parts_leave_and_lend_it_while_these_are_needed() -> None:
    plan = divide(8 * GIB, FOOTPRINT, TOKENS, process=PROCESS + FOOTPRINT.lasting, by_phase=True, **KERNELS)
    whole = divide(8 * GIB, FOOTPRINT, TOKENS, process=PROCESS + FOOTPRINT.dense, **KERNELS)
    assert plan.rest + plan.margin + plan.arena == 8 * GIB
    assert plan.kv_cache == (1.125 * (1 << 14) + (5 << 9)) * TOKENS
    assert plan.activations == SHAPE.text_bytes(TOKENS)
    # An encoder takes more than layers do, by so much; they never run at the same time.
    assert plan.lent["encoding"] == 2200 * MIB + 1024 * MIB - plan.activations
    assert plan.lent["speaking"] == 400 * MIB + SHAPE.speech_kv_bytes(TOKENS)
    assert plan.most_lent == plan.lent["encoding"]
    assert plan.least_arena == plan.arena - plan.most_lent
    # Even while the largest parts are there, experts have more than with everything in memory.
    assert plan.least_arena > whole.arena
    assert (whole.lent, whole.most_lent, whole.least_arena) == ({}, 0, whole.arena)
    assert whole.activations == SHAPE.activation_bytes(TOKENS) == 1024 * MIB


def test_a_model_that_only_writes_lends_nothing() -> None:
    only = replace(FOOTPRINT, parts=())
    assert divide(8 * GIB, only, TOKENS, process=PROCESS, by_phase=True, **KERNELS).lent == {}


def test_what_speaks_takes_a_pass_over_the_prompt_or_some_frames_of_sound() -> None:
    speech = SHAPE.speech
    assert speech is not None
    kept = 2 * TOKENS * 8192
    assert speech.activation_bytes(TOKENS) == kept + 32 * 4 * MIB
    assert replace(speech, vocoder_per_frame=1).activation_bytes(TOKENS) == kept + TALKER.activation_bytes(TOKENS)


@pytest.mark.parametrize(("budget", "experts", "whole"), [(32, None, True), (16, None, False), (16, 8 * GIB, True)])
def test_everything_stays_where_all_experts_fit_beside_it(budget: int, experts: int | None, whole: bool) -> None:
    process = PROCESS + FOOTPRINT.dense
    assert fits_whole(budget * GIB, FOOTPRINT, TOKENS, process=process, experts=experts, **KERNELS) is whole
    assert fits_whole(GIB, replace(FOOTPRINT, parts=(), table=0), TOKENS, process=process, **KERNELS)


def test_the_least_budget_has_room_for_the_largest_parts() -> None:
    process = PROCESS + FOOTPRINT.lasting
    enough = least_budget(FOOTPRINT, TOKENS, process=process, by_phase=True, **KERNELS)
    assert enough < least_budget(FOOTPRINT, TOKENS, process=PROCESS + FOOTPRINT.dense, **KERNELS)
    plan = plan_memory(enough, FOOTPRINT, TOKENS, process=process, by_phase=True, **KERNELS)
    assert plan.least_arena >= FOOTPRINT.least_experts
    with pytest.raises(MemoryBudgetError, match="parts that only some requests need") as refused:
        plan_memory(enough - 64 * MIB, FOOTPRINT, TOKENS, process=process, by_phase=True, **KERNELS)
    assert refused.value.minimum == enough
