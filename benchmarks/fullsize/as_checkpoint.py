"""A full-size model as an ordinary checkpoint in bfloat16, for peers that read nothing else: four times the bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullsize.as_store import side_files
from fullsize.model import DenseTensor, FullSizeModel

if TYPE_CHECKING:
    import torch


def write_as_checkpoint(path: Path, model: FullSizeModel) -> None:
    """Writes the checkpoint, a file for each layer; nothing is done if it is there."""
    from safetensors.torch import save_file

    if path.exists():
        return
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, data in side_files(model).items():
        (partial / name).write_bytes(data)
    count = model.dimensions.layers + 1
    weight_map: dict[str, str] = {}
    total = 0
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        tensors = dict(_outside(model) if number == 0 else _layer(model, number - 1))
        save_file(tensors, partial / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index))
    partial.rename(path)


def _outside(model: FullSizeModel) -> Iterator[tuple[str, torch.Tensor]]:
    for tensor in model.dense():
        if ".layers." not in tensor.name:
            yield tensor.name, _dense(model, tensor)


def _layer(model: FullSizeModel, layer: int) -> Iterator[tuple[str, torch.Tensor]]:
    prefix = f"model.layers.{layer}."
    for tensor in model.dense():
        if tensor.name.startswith(prefix):
            yield tensor.name, _dense(model, tensor)
    for number in range(model.dimensions.experts):
        expert = model.expert(layer, number)
        for name in ("gate", "up", "down"):
            yield f"{prefix}mlp.experts.{number}.{name}_proj.weight", _tensor(getattr(expert, name).bf16())


def _dense(model: FullSizeModel, tensor: DenseTensor) -> torch.Tensor:
    if tensor.kind == "coded":
        return _tensor(model.coded(tensor).bf16())
    return _tensor((model.plain(tensor).view(np.uint32) >> 16).astype(np.uint16))


def _tensor(bits: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(bits)).view(torch.bfloat16)
