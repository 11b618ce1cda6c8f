"""Calibration of a model in a memory cgroup that is smaller than the model, and than what it counts of a layer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coterie
from coterie.inspection import verify
from coterie.store import Store
from harness.cgroup import run_in_cgroup, why_unavailable
from synthetic import Dimensions, write_checkpoint

MIB = 1 << 20
BUDGET = 900 * MIB
REASON = why_unavailable()
DIMENSIONS = Dimensions(layers=3, experts=112, hidden=512, expert_hidden=1024, heads=8)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),  # minutes of the processor are many on a busy machine
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    """1.1 GB, with the bundled model's tokenizer."""
    directory = write_checkpoint(tmp_path / "checkpoint", DIMENSIONS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(coterie.__file__).parent / "bundled" / name, directory)
    yield directory
    shutil.rmtree(directory)


def test_calibration_lives_in_less_than_the_model(checkpoint: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    options = ("--scheme", "int4", "--calibrate", "default", "--calibration-tokens", "2048", "--memory", str(BUDGET))
    command = [sys.executable, "-m", "coterie", "quantize", str(checkpoint), str(store), *options]
    # Second moments of a layer's experts would take 590 MB.
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) > BUDGET
    run = run_in_cgroup(command, BUDGET, timeout_s=2000)
    assert run.returncode == 0, run.stderr[-2000:]
    assert not run.killed
    assert 0 < max(run.resident, run.high_water) <= BUDGET
    made = Store.open(store).manifest
    errors = [record.errors for _, record in made.places.values()]
    assert all(one is not None and one.output < one.nearest for one in errors)
    assert verify(store, against=checkpoint).ok
    shutil.rmtree(store)
