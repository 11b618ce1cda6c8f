"""Several threads on one model live within one budget: their passes and caches are counted together."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cgroup import run_in_cgroup, why_unavailable
from synthetic import Dimensions, write_checkpoint

MIB = 1 << 20
REASON = why_unavailable()
MANY_LENGTHS = (200, 100, 60, 30, 50, 10, 3, 40, 77, 140, 220, 180, 33, 61, 99, 230, 111, 47, 19, 150)
DIMENSIONS = Dimensions(layers=2, experts=32, hidden=2048, expert_hidden=512)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1300),  # dozens of seconds of the processor are minutes on a busy machine
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]

WORK = """
import json, sys, threading, warnings
warnings.simplefilter("ignore")
import torch
from coterie.engine import load
from coterie.errors import ContextLengthError
from coterie.plan.machine import process_memory

path, memory, context, threads, prompt, new, options = json.loads(sys.argv[1])
model = load(path, memory=memory, max_context=context, threads=1)
vocabulary = model.config.get_text_config().vocab_size
done, refused, other = [], [], []
barrier = threading.Barrier(threads)

def work(number):
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(number)
    barrier.wait(timeout=100)
    for length in prompt:
        ids = torch.randint(16, vocabulary, (1, length), generator=draw)
        try:
            made = model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, **options)
            done.append(made.shape[1] - length)
        except ContextLengthError as error:
            refused.append(str(error))
        except BaseException as error:
            other.append(repr(error))

running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
for one in running: one.start()
for one in running: one.join()
print(json.dumps({"done": done, "refused": refused, "other": other, "held": process_memory(exact=True).total}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """0.54 GB, 0.4 GB of it experts."""
    directory = write_checkpoint(tmp_path_factory.mktemp("threads") / "checkpoint", DIMENSIONS)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("model", "budget", "context", "threads", "prompt", "new", "options"),
    [
        # Each prompt takes nearly all that the budget provides for: they wait for each other.
        ("bundled", 640, 1024, 4, (1016,), 4, {}),
        ("bundled", 640, 1024, 4, (1016,), 2, {"use_cache": False}),
        # All fit at once.
        ("bundled", 640, 1024, 4, (200, 100, 244), 12, {}),
        # More threads than fit at once, with two sequences each.
        ("bundled", 640, 512, 8, (120, 60), 4, {"num_beams": 2}),
        # Each thread meets many shapes, and keeps kernels that were compiled for them.
        ("bundled", 640, 512, 8, MANY_LENGTHS, 2, {"use_cache": False}),
        ("large", 900, 512, 4, (508,), 4, {}),
    ],
    ids=str,
)
def test_threads_stay_within_the_budget(
    request: pytest.FixtureRequest,
    model: str,
    budget: int,
    context: int,
    threads: int,
    prompt: tuple[int, ...],
    new: int,
    options: dict[str, object],
) -> None:
    path = model if model == "bundled" else str(request.getfixturevalue(model))
    given = json.dumps([path, budget * MIB, context, threads, prompt, new, options])
    environment = {"OMP_NUM_THREADS": "1"}
    run = run_in_cgroup([sys.executable, "-c", WORK, given], budget * MIB, env=environment, timeout_s=1200)
    assert not run.killed
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["other"] == []
    assert found["refused"] == []
    assert found["done"] == [new] * threads * len(prompt)
    assert max(run.resident, run.high_water) <= budget * MIB
