"""Checkpoints whose experts are rounded in some way, and keep their dtype."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from coterie.checkpoint import Checkpoint
from schemes.ways import Way


def rounded_checkpoint(source: Path, directory: Path, way: Way) -> float:
    """Writes a checkpoint with its experts rounded, one file at a time; returns the MiB that experts would take.

    Args:
        source: A checkpoint with experts as matrices of their own, or stacked.
        directory: Replaced if it is there.
        way: How to round.
    """
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    checkpoint = Checkpoint.open(source)
    experts = {name for key in checkpoint.keys() for name in checkpoint.names_of(key)}
    nbytes = 0.0
    for path in sorted(source.glob("*.safetensors")):
        weights = load_file(path)
        for name in experts & weights.keys():
            value = weights[name]
            columns = value.shape[-1]
            rounded = way.round(value.float().reshape(-1, columns))
            weights[name] = rounded.view(value.shape).to(value.dtype).contiguous()
            nbytes += way.bits(columns) * value.numel() / 8
        save_file(weights, directory / path.name, {"format": "pt"})
    return nbytes / 2**20
