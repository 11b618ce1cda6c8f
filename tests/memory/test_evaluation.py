"""A model larger than memory is its own reference: evaluated inside a cgroup that is smaller than its checkpoint."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cgroup import run_in_cgroup, why_unavailable
from synthetic import Dimensions, write_checkpoint
from zoo.sizes import TEXT_IDS
from zoo.tokenizer import add_tokenizer

MIB = 1 << 20
REASON = why_unavailable()
MEMORY = 896 * MIB
TOKENS = 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1300),  # dozens of seconds of the processor are minutes on a busy machine
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """1.2 GB, 1 GB of it experts."""
    dimensions = Dimensions(layers=2, experts=80, hidden=2048, expert_hidden=512)
    directory = write_checkpoint(tmp_path_factory.mktemp("evaluation") / "checkpoint", dimensions)
    add_tokenizer(directory, chat=False)
    yield directory
    shutil.rmtree(directory)


def test_a_checkpoint_larger_than_memory_has_no_divergence_from_itself(checkpoint: Path, tmp_path: Path) -> None:
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) > MEMORY
    text, kept = tmp_path / "text.txt", tmp_path / "kept"
    words = random.Random(0)
    text.write_text(" ".join(f"w{words.randint(3, TEXT_IDS)}" for _ in range(TOKENS + 1)))
    command = [
        sys.executable, "-m", "coterie", "evaluate", str(checkpoint), "--against", str(checkpoint),
        "--reference", str(kept), "--text", str(text), "--context", "96", "--memory", str(MEMORY), "--json",
        "--continuations", "2", "--prompt-tokens", "32", "--continuation-tokens", "8",
    ]  # fmt: skip
    run = run_in_cgroup(command, MEMORY, env={"OMP_NUM_THREADS": "1"}, timeout_s=1200)
    assert not run.killed
    assert run.returncode == 0, run.stderr[-2000:]
    assert max(run.resident, run.high_water) <= MEMORY
    found = json.loads(run.stdout)
    compared = found["total"]["comparison"]
    assert (compared["identical"], found["total"]["tokens"]) == (TOKENS, TOKENS)
    assert (compared["kld"]["value"], compared["kld_max"]) == (0.0, 0.0)
    assert found["continuations"]["total"]["identical"]["value"] == 1.0
    # What is kept of the model, whose logits are nothing but noise, is no larger than they are.
    logits = TOKENS * 8192 * 2
    assert 0 < sum(file.stat().st_size for file in kept.glob("*.logits")) < logits
