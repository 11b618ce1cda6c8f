from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Checkpoint = Callable[..., Path]


@pytest.fixture
def moe(zoo_checkpoint) -> Path:
    """A Qwen3-MoE of 2 layers with 8 experts each, one tensor per expert: bytes go straight from file to file."""
    return zoo_checkpoint("qwen3_moe", torch.bfloat16)
