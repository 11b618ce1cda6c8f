"""A curve that workers of a Ray measure is the one that a single process measures: `make test-ray`."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from coterie.curves import CurveAxes, CurveProgress, curve
from coterie.errors import UsageError
from on_ray.processes import worker_pids

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

OPTIONS: dict[str, Any] = {"context": 24, "stride": 8, "memory": "2GiB", "threads": 1}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = random.Random(7)
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    path.write_text(" ".join(f"w{drawn.randint(3, 80)}" for _ in range(300)))
    return path


def test_points_are_the_same_though_all_workers_are_killed(
    cluster: str, readable: Path, text: Path, tmp_path: Path
) -> None:
    axes = CurveAxes(coverage=["50%"], missing=["mask"], schemes=["int4"])
    killed: list[int] = []

    def kill(progress: CurveProgress) -> None:
        # In the middle of the second point: the first is kept already.
        if not killed and progress.done == 1 and progress.tokens is not None and progress.tokens.done > 0:
            killed.extend(worker_pids())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    here = curve(readable, [text], axes, output=tmp_path / "here.json", **OPTIONS)
    with pytest.warns(UserWarning, match="A worker was lost"):
        there = curve(readable, [text], axes, output=tmp_path / "there.json", ray=cluster, progress=kill, **OPTIONS)
    assert killed
    assert there == here
    assert all(point.total.comparison and point.kld.value > 0 for point in here.points)
    ours, theirs = ((tmp_path / f"{name}.points.jsonl").read_bytes() for name in ("here", "there"))
    assert ours == theirs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.points.jsonl", "there.points.jsonl"]


def test_what_is_read_is_not_measured_by_workers(cluster: str, readable: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="one process computes all, in order"):
        curve(readable, [text], CurveAxes(drop_cold=[0.1]), ray=cluster, **OPTIONS)
    with pytest.raises(UsageError, match="Add --memory"):
        curve(readable, [text], ray=cluster)
