"""Copies of checkpoints with something wrong in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def copy_of(checkpoint: Path, target: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(checkpoint, target / "damaged"))


def edit_config(directory: Path, **changes: Any) -> None:
    """Changes keys of config.json; a value of None removes the key."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_tensors(directory: Path, edit: Callable[[Tensors], None]) -> None:
    """Rewrites the single shard."""
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_index(directory: Path, edit: Callable[[dict[str, str]], None]) -> None:
    """Rewrites the weight map of a sharded checkpoint."""
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))
