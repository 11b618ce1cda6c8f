"""Copies of checkpoints with something wrong in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file

from coterie.store.manifest_json import seal_manifest

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


def edit_header(path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Changes the header of a safetensors file, and not where its data begin; returns the file."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(end - 8)
    assert len(text) == end - 8
    path.write_bytes(data[:8] + text + data[end:])
    return path


def edit_index(directory: Path, edit: Callable[[dict[str, str]], None]) -> None:
    """Rewrites the weight map of a sharded checkpoint."""
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


def register(file: Path) -> Path:
    """Has the manifest of a store say what is in a file now, as a publisher can; returns the file."""
    path = file.parent / "coterie.json"
    manifest = json.loads(path.read_bytes())
    (entry,) = [one for one in (*manifest["files"], *manifest["dense"]["shards"]) if one["file"] == file.name]
    entry["bytes"], entry["xxh3"] = file.stat().st_size, xxhash.xxh3_128_hexdigest(file.read_bytes())
    path.write_bytes(seal_manifest(manifest))
    return file
