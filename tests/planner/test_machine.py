"""Measuring: figures that can be, of every precision."""

from pathlib import Path

import pytest

from coterie.planner import machine
from coterie.planner.machine import measure_machine


def test_everything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_NBYTES", 2**22)
    monkeypatch.setattr(machine, "_DECODED_NBYTES", 2**22)
    monkeypatch.setattr(machine, "_QUANTISED_NBYTES", 2**22)
    told: list[str] = []
    found = measure_machine(None, record=2**20, precisions=["int4", "int8", "fp8", "mxfp4"], tell=told.append)
    assert set(found.products) == {"bf16", "int4", "int8", "fp8", "mxfp4"}
    assert all(speed.token > 0 and speed.prompt > 0 for speed in found.products.values())
    assert found.bus > 0
    assert found.quantising > 0
    assert found.disk is None
    assert "multiplying int4 matrices" in told
    assert found.product("native") == found.products["bf16"]


def test_the_disk_is_measured_where_nothing_is_known_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.plan.disk_notes.cache_folder", lambda: tmp_path / "cache")
    read = machine.measure_reads
    monkeypatch.setattr(machine, "measure_reads", lambda place, **rest: read(place, nbytes=2**24, seconds=0.02, **rest))
    found = machine._disk(tmp_path / "not" / "yet", 2**20, lambda _line: None)
    assert found.path == str(tmp_path)
    assert found.random > 0
    assert found.sequential > 0
