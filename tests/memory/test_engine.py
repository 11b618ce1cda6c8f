"""Eight clients at once live within one budget: their keys and values come out of the experts' memory, and return."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import coterie
from harness.cgroup import run_in_cgroup, why_unavailable
from synthetic import Dimensions, write_checkpoint

MIB = 1 << 20
REASON = why_unavailable()
DIMENSIONS = Dimensions(layers=2, experts=32, hidden=2048, expert_hidden=512, kv_heads=32)
"""A token has 32 KiB of keys and values."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1300),  # dozens of seconds of the processor are minutes on a busy machine
    pytest.mark.skipif(REASON is not None, reason=f"needs a memory cgroup (Linux, root): {REASON}"),
]

PROGRAM = """
import json, random, sys, threading, warnings
warnings.simplefilter("ignore")
import coterie
from coterie.generation.completion import complete
from coterie.generation.inputs import token_inputs

path, memory, context, length, new, pictures = json.loads(sys.argv[1])
model = coterie.load(path, memory=memory, max_context=context, threads=1)
told, most, failed = {}, {"held": 0, "lent": 0, "running": 0}, []
before = model.coterie.cache.capacity

def asked(number):
    draw = random.Random(number)
    if pictures:
        parts = [{"type": "image", "path": pictures[number % len(pictures)]}, {"type": "text", "text": "What is it?"}]
        return [{"role": "user", "content": parts}]
    return [draw.randrange(16, 8000) for _ in range(length)]

with coterie.Engine(model, parallel=8) as engine:
    wishes = coterie.Sampling(max_new_tokens=new, greedy=True)

    def client(number):
        try:
            told[number] = list(engine.submit(asked(number), wishes).result().token_ids)
        except BaseException as error:
            failed.append(repr(error))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for one in clients: one.start()
    while any(one.is_alive() for one in clients):
        for name in most:
            most[name] = max(most[name], getattr(engine if name == "running" else engine.governor, name))
        clients[0].join(0.01) if clients[0].is_alive() else threading.Event().wait(0.01)
    left = engine.governor.held
    opened = engine.opened
same = True
if not pictures:
    for number in (0, 5):
        inputs = token_inputs(opened.processors, asked(number))
        alone = complete(model, opened.processors.tokenizer, inputs, wishes, piece=512)
        same &= list(alone.token_ids) == told[number]
print(json.dumps({"answers": [len(one) for one in told.values()], "failed": failed, "left": left, "same": same,
                  "total": engine.governor.total, "back": model.coterie.cache.capacity == before, **most}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = write_checkpoint(tmp_path_factory.mktemp("engine") / "checkpoint", DIMENSIONS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(coterie.__file__).parent / "bundled" / name, directory)
    yield directory
    shutil.rmtree(directory)


def run(memory: int, model: str, *options: object) -> dict[str, Any]:
    settings = json.dumps([model, memory * MIB, *options])
    found = run_in_cgroup(
        [sys.executable, "-c", PROGRAM, settings], memory * MIB, env={"OMP_NUM_THREADS": "1"}, timeout_s=1200
    )
    assert not found.killed
    assert found.returncode == 0, found.stderr[-2000:]
    assert max(found.resident, found.high_water) <= memory * MIB, (found.resident / MIB, found.high_water / MIB)
    told: dict[str, Any] = json.loads(found.stdout)
    assert told["failed"] == []
    assert len(told["answers"]) == 8
    assert (told["left"], told["back"], told["same"]) == (0, True, True)
    assert told["held"] <= told["total"]
    return told


@pytest.mark.parametrize("memory", [1300, 1500])
def test_long_contexts_take_from_the_experts(checkpoint: Path, memory: int) -> None:
    told = run(memory, str(checkpoint), 1024, 700, 60, [])
    # Eight contexts are more than the one that the budget was made for.
    assert told["lent"] > 0
    assert told["running"] > 1


def test_pictures_of_all_clients(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        paths.append(str(tmp_path / f"{number}.png"))
        small = np.random.default_rng(number).integers(0, 256, (150, 200, 3), dtype=np.uint8)
        Image.fromarray(np.kron(small, np.ones((10, 10, 1), np.uint8))).save(paths[-1])
    told = run(720, "bundled", 4096, 0, 30, paths)
    assert told["running"] > 1
