"""Clients of a server, with pictures and prompts as long as the context, live together within its budget."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from coterie.extraction import extract
from harness.cgroup import why_unavailable
from harness.clients import Client, at_once, one_by_one, served
from omni import OmniDimensions, write_omni

MIB = 1 << 20
REASON = why_unavailable()
DIMENSIONS = OmniDimensions(layers=4, experts=128, top_k=4, expert_hidden=768, kv_heads=8)
"""298 MiB of experts in int8; 4,096 tokens have 64 MiB of keys and values."""
CONTEXT = 4096
CLIENTS = [Client(number, words) for number, words in enumerate((3200, 500, 900, 1500, 150, 2000, 300, 700))]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("clients")
    checkpoint = write_omni(root / "checkpoint", DIMENSIONS)
    extract(checkpoint, root / "store", scheme="int8", dense_scheme="int8")
    shutil.rmtree(checkpoint)
    yield root / "store"
    shutil.rmtree(root)


@pytest.mark.timeout(900)
def test_eight_clients_with_pictures_and_long_prompts(store: Path) -> None:
    memory = 1040 * MIB
    shared = [store, "--max-context", CONTEXT, "--threads", 1]
    environment = {"OMP_NUM_THREADS": "1"}
    run, answers = served(
        [*shared, "--memory", memory, "--parallel", 8], memory, partial(at_once, CLIENTS), env=environment
    )
    assert not run.killed
    assert run.returncode == 0, run.stderr[-2000:]
    assert max(run.resident, run.high_water) <= memory, (run.resident / MIB, run.high_water / MIB)
    # What the budget allows is also used: a ceiling far above what is held would pass too.
    assert max(run.resident, run.high_water) > 0.75 * memory
    # Alone, with all experts in memory and nothing computed before.
    alone = [*shared, "--expert-memory", "100%", "--parallel", 1, "--prefix-memory", 0]
    _, expected = served(alone, None, partial(one_by_one, CLIENTS), env=environment)
    assert answers == expected
