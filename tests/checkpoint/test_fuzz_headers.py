"""Mutated headers of safetensors files: a result, or an error of Coterie. ``COTERIE_FUZZ=25`` tries 100,000."""

import json
import random
import struct

import pytest
import torch
from safetensors.torch import save_file

from coterie.checkpoint import Checkpoint, read_header
from engine.damage import copy_of
from fuzzing import Watch, cases, hostile, mutate, scramble

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
THROUGH_A_CHECKPOINT = 20


def split(data: bytes) -> tuple[bytes, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return data[8 : 8 + length], data[8 + length :]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with another header: other values, other bytes, or another length."""
    text, tensors = split(data)
    kind = rng.random()
    if kind < 0.6:
        header = mutate(json.loads(text), rng, extra=("__metadata__", "a"))
        text = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    elif kind < 0.9:
        text = scramble(text, rng)
    elif kind < 0.93:
        name = json.dumps(rng.choice(list(json.loads(text)))).encode()
        text = text[:-1].rstrip(b"} ") + b"}," + name + b":" + json.dumps(hostile(rng)).encode() + b"}"
    length = (
        len(text) if rng.random() < 0.95 else rng.choice((0, 1, len(text) - 1, len(text) + 1, 2**40, 2**63, 2**64 - 1))
    )
    return struct.pack("<Q", length) + text + (tensors if rng.random() < 0.9 else tensors[: len(tensors) // 2])


def test_mutated_headers(tmp_path):
    save_file(
        {
            "b": torch.zeros(3, 4),
            "a.0": torch.zeros(2, dtype=torch.bfloat16),
            "e": torch.zeros(0, 5),
            "s": torch.ones(()),
        },
        tmp_path / "good.safetensors",
        metadata={"format": "pt"},
    )
    good = (tmp_path / "good.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    watch = Watch()
    for case in range(cases(4000)):
        path.write_bytes(mutated(good, random.Random(case)))
        watch.run(case, lambda: read_header(path))
    watch.check()
    assert watch.outcomes["CheckpointFileError"]


def test_checkpoints_with_mutated_headers(zoo_checkpoint, tmp_path):
    directory = copy_of(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path)
    path = directory / "model.safetensors"
    good = path.read_bytes()
    watch = Watch()
    for case in range(cases(4000) // THROUGH_A_CHECKPOINT):
        path.write_bytes(mutated(good, random.Random(case)))
        watch.run(case, lambda: Checkpoint.open(directory))
    watch.check()
