"""Forecasts for the full-size model that bench_peers.py ran: its speeds lie between an empty and a full cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import plan_tables
from coterie.extraction.whole import plan_whole
from coterie.inspection.contents import checkpoint_contents
from coterie.inspection.what_fits import process_nbytes
from coterie.origins import CheckpointOrigin
from coterie.planner import Forecast, Law
from coterie.planner.asked import open_asked
from coterie.planner.subject import Subject
from harness.report import RESULTS
from model_sizes import MODELS, lay_out


def forecast(folder: Path) -> Forecast:
    """Of Qwen3-30B-A3B in int4, on the machine where it was measured."""
    lay_out(next(model for model in MODELS if model.name == "Qwen/Qwen3-30B-A3B"), folder)
    checkpoint = open_asked(folder).checkpoint
    contents = checkpoint_contents(checkpoint, plan_whole(CheckpointOrigin(checkpoint), "int4", "int4"))
    subject = Subject.of(contents)
    law = Law(experts=subject.experts)
    return Forecast(
        subject=subject,
        hit_rates=law,
        context=4096,
        prompt_tokens=32,
        answer_tokens=48,
        machine=plan_tables.machine(),
        process=process_nbytes(),
    )


@pytest.mark.slow
def test_measured_speeds_lie_between_an_empty_and_a_full_cache(tmp_path: Path) -> None:
    made = forecast(tmp_path)
    outcomes = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["values"]["outcomes"]
    inside = []
    for one in outcomes:
        if one["engine"] != "coterie" or len(one["steps_s"]) < 10:
            continue
        expected = made.with_room_for(one["own"]["capacity"]).speed
        measured = len(one["steps_s"]) / one["own"]["decode_s"]
        inside.append(expected.cold_tokens_per_second.low <= measured <= expected.tokens_per_second.high)
    assert len(inside) >= 12
    assert sum(inside) >= 0.9 * len(inside)


def test_the_machine_is_that_of_the_results() -> None:
    found = plan_tables.machine()
    assert set(found.products) == {"bf16", "int4", "int8"}
    assert found.disk.random == pytest.approx(1.97e9)
    assert 20e9 < found.products["int4"].token < found.bus
