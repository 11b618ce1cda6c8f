from pathlib import Path

import numpy as np
import pytest
import torch

from coterie.checkpoint import Checkpoint
from coterie.profiles import BankShape, ProfileDatabase, Recording, RunFacts


@pytest.fixture(scope="session")
def moe(zoo_checkpoint) -> Path:
    """A Qwen3-MoE of 2 layers with 8 experts each, one tensor per expert: bytes go straight from file to file."""
    return zoo_checkpoint("qwen3_moe", torch.bfloat16)


@pytest.fixture
def profile(moe, tmp_path):
    """In `code` the first experts of each layer are used most, in `prose` the last ones."""
    source = Checkpoint.open(moe)

    def write(path, identity=source.identity):
        banks = tuple(BankShape(bank=bank, experts=8, top_k=2) for bank in sorted(source.banks))
        run = RunFacts(identity=identity, model="m", model_class="M", tool_version="0", banks=banks)
        with ProfileDatabase(path, create=True) as database, Recording(database, run, vocabulary=0) as recording:
            for domain, chosen in (("code", (0, 1)), ("prose", (6, 7))):
                group = recording.group("text", domain, "prompt")
                for shape in banks:
                    ids = np.tile(np.array(chosen, np.uint16), (500, 1))
                    recording.add(shape.bank, ids, np.ones(ids.shape, np.float32), None, group)
        return path

    write.path = write(tmp_path / "p.db")
    return write
