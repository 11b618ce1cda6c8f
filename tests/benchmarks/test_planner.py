"""Forecasts beside what was measured: what a grade may see, and when a requirement is not met."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import known_models
from accuracy import replayed, tables
from accuracy.runs import Subject, Tried
from coterie.planner import HitRate, Range
from harness.report import Report
from harness.text_run import Reader

MIB = 1 << 20


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report("planner", "Planned and measured", work=tmp_path, quick=True)


def rates(low: float, expected: float, high: float) -> dict[str, Any]:
    return {"grade": "probe", "basis": "", "rate": {"low": low, "expected": expected, "high": high}}


def tried(peak: int, speed: float = 10.0, hit_rate: float = 0.8) -> Tried:
    subject = Subject(name="m", model="m", text=Path("t"), budgets=("1GiB",), context=64)
    said = {
        "memory": {"process_nbytes": 400 * MIB, "dense_nbytes": 20 * MIB, "expert_nbytes": 500 * MIB,
                   "held_nbytes": 1000 * MIB},
        "share": 0.5,
        "hit_rate": rates(0.7, 0.8, 0.9),
        "speed": {"tokens_per_second": {"low": 8.0, "expected": 10.0, "high": 12.0}, "limit": "disk",
                  "first_token_s": {"low": 0.5, "expected": 1.0, "high": 2.0}},
    }  # fmt: skip
    came = {"loaded": 410 * MIB, "committed": 500 * MIB, "cold_prompt_s": 1.5, "prompt_s": 0.7, "step_s": 1 / speed,
            "hit_rate": hit_rate}  # fmt: skip
    return Tried(subject=subject, budget="1GiB", planned=said, probed=said, experts=600 * MIB, measured=came, peak=peak)


@pytest.mark.parametrize(("peak", "met"), [(950, [True, True]), (1001, [False, True]), (900, [True, False])])
def test_memory_may_not_be_below_nor_far_above(report: Report, peak: int, met: list[bool]) -> None:
    tables.memory(report, [tried(peak * MIB)])
    assert [verdict.met for verdict in report.verdicts] == met
    assert report.tables[0].rows[0][3:7] == ("420 / 410", "500 / 500", f"80 / {peak - 910}", f"1000 / {peak}")


@pytest.mark.parametrize(
    ("speed", "met"), [(10.0, [True, True]), (12.4, [False, True]), (11.9, [True, True]), (8.1, [True, False])]
)
def test_speed_lies_in_its_range_and_near(report: Report, speed: float, met: list[bool]) -> None:
    tables.speeds(report, [tried(950 * MIB, speed)])
    assert [verdict.met for verdict in report.verdicts] == met


def test_hit_rates_are_required_by_grade(report: Report) -> None:
    tables.require_hits(report, tables.hits(report, [tried(950 * MIB), tried(950 * MIB, hit_rate=0.69)]))
    assert [(verdict.measured, verdict.met) for verdict in report.verdicts] == [
        ("2 of 4", False),
        ("4 of 4, at most 16% off", True),
    ]


def test_a_probe_sees_only_what_comes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    recording = replayed.Recording.read(known_models.DATA / "qwen3-30b-a3b.npz")
    steps = replayed.Recording.steps

    def noted(self: replayed.Recording, first: int, end: int) -> replayed.Window:
        seen.append((first, end))
        return steps(self, first, end)

    monkeypatch.setattr(replayed.Recording, "steps", noted)
    found = list(replayed._by_probe(recording, 1))
    assert seen == [(0, 64), (64, 128)]
    assert [one.share for one in found] == list(replayed.SHARES)
    assert all(one.inside and one.off < 0.2 for one in found)
    seen.clear()
    assert all(one.inside for one in replayed._by_known_model(recording, 1))
    assert seen == [(0, 64), (64, 128)]


def test_a_forecast_that_is_wrong_is_outside() -> None:
    forecast = HitRate(grade="law", basis="", rate=Range(low=0.4, expected=0.5, high=0.6))
    one = replayed.Forecasted(about="m", share=0.5, forecast=forecast, measured=0.625)
    assert not one.inside
    assert one.off == pytest.approx(0.2)


def test_a_text_is_read_on_where_it_ended() -> None:
    passes: list[tuple[list[int], object]] = []

    class Model:
        def __call__(self, ids: torch.Tensor, **given: object) -> SimpleNamespace:
            passes.append((ids[0].tolist(), given.get("past_key_values")))
            return SimpleNamespace()

    reader = Reader(Model(), torch.arange(10))
    first, seconds = reader.read(2, 2)
    reader.read(1, 1)
    reader.prompt(12)
    assert first > 0
    assert len(seconds) == 2
    assert [ids for ids, _ in passes[:5]] == [[0, 1], [2], [3], [4], [5]]
    assert passes[5][0] == [*range(10), 0, 1]
