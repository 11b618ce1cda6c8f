"""The budget is the whole process: extraction and generation live in memory cgroups no larger than it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cgroup import CgroupRun, run_in_cgroup, why_unavailable
from synthetic import Dimensions, write_checkpoint

MIB = 1 << 20
REASON = why_unavailable()
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DIMENSIONS = Dimensions(layers=2, experts=32, hidden=2048, expert_hidden=512)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1300),  # dozens of seconds of the processor are minutes on a busy machine
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """0.54 GB, 0.4 GB of it experts."""
    directory = write_checkpoint(tmp_path_factory.mktemp("memory") / "checkpoint", DIMENSIONS)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def extracted(checkpoint: Path) -> Iterator[tuple[CgroupRun, Path]]:
    """The extraction inside a cgroup smaller than the checkpoint, and the store."""
    store = checkpoint.parent / "store"
    command = [sys.executable, "-m", "coterie", "extract", str(checkpoint), str(store)]
    yield run_in_cgroup(command, 512 * MIB, timeout_s=1200), store
    shutil.rmtree(store, ignore_errors=True)


def generate(model: str | Path, memory: int, *options: object) -> tuple[CgroupRun, dict[str, Any]]:
    """Generates with ``memory`` in a cgroup of that size."""
    command = [sys.executable, "-m", "harness.generation", str(model), "--memory", str(memory), *map(str, options)]
    environment = {"PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"}
    run = run_in_cgroup(command, memory, env=environment, timeout_s=1200)
    assert run.returncode == 0, run.stderr[-2000:]
    return run, json.loads(run.stdout)


def test_a_process_that_takes_more_is_killed() -> None:
    run = run_in_cgroup([sys.executable, "-c", "bytearray(200 << 20)"], 100 * MIB, timeout_s=1200)
    assert run.killed
    assert run.returncode != 0


def test_sampling_sees_what_a_process_takes() -> None:
    run = run_in_cgroup([sys.executable, "-c", "import time; b = bytearray(200 << 20); time.sleep(3)"], 400 * MIB)
    assert run.returncode == 0
    assert 200 * MIB <= run.resident < 260 * MIB
    assert run.anonymous >= 200 * MIB
    assert run.high_water >= run.resident


def test_extraction_lives_in_less_than_the_model(extracted: tuple[CgroupRun, Path], checkpoint: Path) -> None:
    run, store = extracted
    assert run.returncode == 0, run.stderr[-2000:]
    assert not run.killed
    assert (store / "coterie.json").is_file()
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) > 512 * MIB
    assert 0 < max(run.resident, run.high_water) < 512 * MIB


@pytest.mark.parametrize("budget", [768 * MIB, 1024 * MIB])
def test_generation_stays_within_its_budget(extracted: tuple[CgroupRun, Path], budget: int) -> None:
    options = ("--max-context", 544, "--prompt-tokens", 31, 200, 512, "--new-tokens", 16)
    run, result = generate(extracted[1], budget, *options)
    assert not run.killed
    assert max(run.resident, run.high_water) <= budget
    assert result["capacity"] < result["total_expert_bytes"] or budget >= 1024 * MIB
    # What the budget allows is also used: a ceiling far above what is held would pass too.
    assert max(run.resident, run.high_water) > 0.8 * budget


def test_a_checkpoint_is_run_within_its_budget(checkpoint: Path) -> None:
    run, _ = generate(checkpoint, 768 * MIB, "--max-context", 160, "--prompt-tokens", 128, "--new-tokens", 4)
    assert not run.killed
    assert max(run.resident, run.high_water) <= 768 * MIB


def test_the_bundled_model_and_prompts_of_many_lengths() -> None:
    lengths = (300, 150, 77, 299, 44, 123, 251, 18, 275, 300)
    run, result = generate("bundled", 576 * MIB, "--max-context", 336, "--prompt-tokens", *lengths)
    assert not run.killed
    assert max(run.resident, run.high_water) <= 576 * MIB
    assert len(result["tokens"]) == 32
