"""A prompt's logits take the memory of one position's: budgets hold that have no room for those of all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cgroup import CgroupRun, run_in_cgroup, why_unavailable
from zoo import ZOO
from zoo.weights import build

MIB = 1 << 20
REASON = why_unavailable()
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PROMPT = 2000
VOCABULARY = 100_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1300),  # dozens of seconds of the processor are minutes on a busy machine
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]

CALLS = """
import json, sys, torch, warnings
from coterie import load
from coterie.errors import ContextLengthError
warnings.simplefilter("ignore")
model = load(sys.argv[1], memory=sys.argv[2], max_context=int(sys.argv[3]))
ids = torch.arange(int(sys.argv[3]))[None] % 40 + 3
let_in = 0
with torch.no_grad():
    for count in range(ids.shape[1], 64, -1):
        try:
            let_in = model(ids, use_cache=False, logits_to_keep=count).logits.shape[1]
            break
        except ContextLengthError as refused:
            words = str(refused)
print(json.dumps({"let_in": let_in, "refused": words}))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class that computes all logits by itself; those of a prompt are 15 times as large as its weights."""
    directory = tmp_path_factory.mktemp("logits") / "wide"
    one = ZOO["qwen3_omni_thinker"]
    config: Any = one.config()
    config.text_config.vocab_size = VOCABULARY
    build(one.model_class, config, torch.bfloat16).save_pretrained(directory)
    return directory


def run_within(memory: int, *command: object) -> tuple[CgroupRun, dict[str, Any]]:
    environment = {"PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"}
    run = run_in_cgroup([sys.executable, *map(str, command)], memory, env=environment, timeout_s=1200)
    assert not run.killed
    assert run.returncode == 0, run.stderr[-2000:]
    assert max(run.resident, run.high_water) <= memory
    return run, json.loads(run.stdout.splitlines()[-1])


def generate_within(memory: int, model: str | Path, prompt: int, logits: int) -> None:
    options = ("--max-context", prompt + 64, "--prompt-tokens", 64, prompt, "--new-tokens", 8)
    _, result = run_within(memory, "-m", "harness.generation", model, "--memory", memory, *options)
    assert len(result["tokens"]) == 8
    # With room for the logits of all positions set aside, too, not one expert would fit.
    assert result["plan"]["arena"] < logits


def test_a_prompt_whose_logits_are_larger_than_what_is_left(wide: Path) -> None:
    generate_within(640 * MIB, wide, PROMPT, PROMPT * VOCABULARY * 2)


def test_the_bundled_model_and_a_prompt_of_its_whole_context() -> None:
    generate_within(700 * MIB, "bundled", 4000, 4000 * 8192 * 2)


def test_logits_of_as_many_positions_as_there_is_room_for_are_within_the_budget(wide: Path) -> None:
    _, result = run_within(640 * MIB, "-c", CALLS, wide, 640 * MIB, PROMPT)
    assert 64 < result["let_in"] < PROMPT
    assert "logits_to_keep=1" in result["refused"]
