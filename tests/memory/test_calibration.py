"""Calibration of a model in a memory cgroup that is smaller than the model, and than what it counts of a layer."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import coterie
from coterie.inspection import verify
from coterie.spec import BankKey
from coterie.store import Store
from harness.cgroup import run_in_cgroup, why_unavailable
from synthetic import Dimensions, write_checkpoint

MIB = 1 << 20
BUDGET = 736 * MIB
REASON = why_unavailable()
DIMENSIONS = Dimensions(layers=3, experts=170, hidden=512, expert_hidden=512, heads=8)
CALIBRATED = {0: 4, 2: 28}
"""Layer → how many of its experts are calibrated. The layer between them is run for the states of the last one."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1300),  # dozens of seconds of the processor are minutes on a busy machine
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[Path]:
    """830 MB, with the bundled model's tokenizer."""
    directory = write_checkpoint(tmp_path / "checkpoint", DIMENSIONS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(coterie.__file__).parent / "bundled" / name, directory)
    yield directory
    shutil.rmtree(directory)


def test_calibration_lives_in_less_than_the_model(checkpoint: Path, tmp_path: Path) -> None:
    store, schemes = tmp_path / "store", tmp_path / "schemes.json"
    chosen = {
        str(BankKey("text", layer, "mlp").expert(number)): "int4"
        for layer, count in CALIBRATED.items()
        for number in range(count)
    }
    schemes.write_text(json.dumps({"schema_version": 1, "rest": "native", "experts": chosen}))
    options = ("--calibrate", "default", "--calibration-tokens", "1024", "--memory", str(BUDGET))
    command = [sys.executable, "-m", "coterie", "quantize", str(checkpoint), str(store)]
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) > BUDGET
    # Second moments of the last layer's take 88 MB together, which is more than is left beside the model.
    run = run_in_cgroup([*command, "--expert-schemes", str(schemes), *options], BUDGET, timeout_s=1200)
    assert run.returncode == 0, run.stderr[-2000:]
    assert not run.killed
    assert 0 < max(run.resident, run.high_water) <= BUDGET
    made = Store.open(store).manifest
    errors = {str(key): record.errors for key, (_, record) in made.places.items() if record.errors is not None}
    assert errors.keys() == chosen.keys()
    assert all(one.output < one.nearest for one in errors.values())
    assert verify(store, against=checkpoint).ok
    shutil.rmtree(store)
