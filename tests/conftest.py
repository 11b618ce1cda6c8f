"""Fixtures of the whole suite: offline, one thread, tiny checkpoints made once per session."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from zoo import checkpoint

ZooCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tiny models gain nothing from more threads, and busy machines lose a lot.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> ZooCheckpoint:
    """Gives the directory of a zoo model's checkpoint: ``zoo_checkpoint(name, dtype, max_shard_size=None)``."""
    root = tmp_path_factory.mktemp("zoo")

    def make(name: str, dtype: torch.dtype = torch.float32, max_shard_size: str | int | None = None) -> Path:
        return checkpoint(name, dtype, root, max_shard_size=max_shard_size)

    return make
