"""The generated models that benchmarks run on, made once in the work directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from synthetic import Dimensions, write_checkpoint

LARGE = Dimensions(layers=4)
"""Layers as those of Qwen3-30B-A3B, 4.8 GB of experts."""

MEDIUM = Dimensions(layers=2, experts=32, expert_hidden=512)
"""0.4 GB of experts."""


def generated_checkpoint(work: Path, dimensions: Dimensions) -> Path:
    """The checkpoint of these dimensions; made if it is not there."""
    name = f"checkpoint-{dimensions.layers}x{dimensions.experts}-{dimensions.hidden}x{dimensions.expert_hidden}"
    target = work / name
    if not target.exists():
        partial = work / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_checkpoint(partial, dimensions)
        partial.rename(target)
    return target


def generated_store(work: Path, dimensions: Dimensions) -> Path:
    """The store of that checkpoint; made, or completed, if it is not there."""
    import coterie

    checkpoint = generated_checkpoint(work, dimensions)
    store = work / checkpoint.name.replace("checkpoint", "store")
    coterie.extract(checkpoint, store)
    return store
