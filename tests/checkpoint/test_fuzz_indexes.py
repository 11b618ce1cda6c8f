"""Mutated indexes of shards: a result, or an error of Coterie. ``COTERIE_FUZZ=10`` tries 1,000."""

import json
import random

import pytest
import torch

from coterie.checkpoint import Checkpoint
from engine.damage import copy_of
from fuzzing import Watch, cases, mutate, scramble

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


def test_mutated_indexes(zoo_checkpoint, tmp_path):
    directory = copy_of(zoo_checkpoint("qwen3_moe", torch.bfloat16, "60KB"), tmp_path)
    path = directory / "model.safetensors.index.json"
    good = path.read_bytes()
    watch = Watch()
    for case in range(cases(100)):
        rng = random.Random(case)
        if rng.random() < 0.7:
            index = mutate(json.loads(good), rng, extra=("dtype", "metadata", "weight_map"))
            if rng.random() < 0.3 and isinstance(index.get("metadata"), dict):
                mutate(index["metadata"], rng, extra=("dtype",))
            path.write_bytes(json.dumps(index).encode("utf-8", "surrogatepass"))
        else:
            path.write_bytes(scramble(good, rng))
        watch.run(case, lambda: Checkpoint.open(directory))
    watch.check()
