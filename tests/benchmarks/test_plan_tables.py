"""Forecasts for the full-size model that bench_peers.py ran: its speeds lie in the ranges."""

from __future__ import annotations

import pytest

import plan_tables
from accuracy import kept


@pytest.mark.slow
def test_measured_speeds_lie_in_their_ranges() -> None:
    found = kept.kept()
    assert {one.expected.hit_rate.grade for one in found} == {"law", "known model"}
    assert len(found) >= 21
    assert sum(one.inside for one in found) >= 0.9 * len(found)


def test_the_machine_is_that_of_the_results() -> None:
    found = plan_tables.machine()
    assert set(found.products) == {"bf16", "int4", "int8"}
    assert found.disk.random == pytest.approx(1.97e9)
    assert 20e9 < found.products["int4"].token < found.bus
