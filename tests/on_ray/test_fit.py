"""A store that workers of a Ray help to fit is the one that a single process fits: `make test-ray`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from coterie.fitting import Fit, FitProgress, FitRequest, fit
from coterie.survey import gather
from extraction.stores import snapshot
from fitting.conftest import text
from on_ray.processes import worker_pids

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore:In some layer, an expert")]

KILLED_IN = ("profile", "evaluate")
"""Stages that lose their workers; that calibration may is another test's."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("material")
    material = [one for domain in ("code", "prose") for one in gather("text", domain, text(folder, domain))]
    return {
        "memory": "8GiB",
        "work_memory": "2GiB",
        "context": 64,
        "bits": 3.2,
        "material": tuple(material),
        "calibration_tokens": 600,
        "limit": 200,
        "threads": 1,
        "measure": False,
    }


def facts(found: Fit) -> dict[str, Any]:
    """What was found, without times, and without what this process took before."""
    plain = found.to_json()
    for made in (plain["made"]["store"], plain["uniform"]["store"]):
        made.pop("seconds")
    plain["sizing"].pop("room")
    return plain


def test_the_store_and_its_figures_are_the_same_though_workers_are_killed(
    cluster: str, readable: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    killed: dict[str, list[int]] = {}

    def kill(progress: FitProgress) -> None:
        if progress.stage in KILLED_IN and progress.stage not in killed and (pids := worker_pids()):
            killed[progress.stage] = pids
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

    # Both are called the same: the name is on the card.
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here = fit(readable, tmp_path / "here/store", FitRequest(**asked), keep_work=True)
    with pytest.warns(UserWarning, match="A worker was lost"):
        there = fit(readable, tmp_path / "there/store", FitRequest(**asked, ray=cluster), keep_work=True, progress=kill)
    assert set(killed) == set(KILLED_IN)
    assert facts(there) == facts(here)
    assert all(row.kld.value > 0 for row in here.evaluated.figures)
    ours, theirs = (snapshot(tmp_path / name / "store") for name in ("here", "there"))
    for found in (ours, theirs):
        for name in ("README.md", "coterie-fit.json", "coterie.json"):
            assert found.pop(name)  # they say how long it took
    assert ours == theirs
    for name in ("store", "uniform"):
        kept = (tmp_path / side / "store.work" / f"{name}.windows.jsonl" for side in ("here", "there"))
        assert next(kept).read_bytes() == next(kept).read_bytes()
