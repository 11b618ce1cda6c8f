"""Checkpoints of the zoo on disk, and stock transformers opening them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from zoo.families import ZOO, ZooModel
from zoo.matrix import MATRIX

_BY_NAME = {**MATRIX, **ZOO}
"""The zoo's own models where both have a name; the matrix builds its own, which are smaller."""


def checkpoint(name: str, dtype: torch.dtype, root: Path, *, max_shard_size: str | int | None = None) -> Path:
    """Saves a model below ``root``, unless it is there already.

    Args:
        name: A name in ``ZOO``, or one in ``MATRIX`` that it does not have.
        dtype: Of the weights.
        root: Directory shared by the tests of a session.
        max_shard_size: As in ``save_pretrained``; None for a single file.
    """
    directory = root / f"{name}-{str(dtype).removeprefix('torch.')}-{max_shard_size or 'whole'}"
    if not directory.exists():
        # Under another name until complete: sessions with several workers may share the root.
        partial = Path(tempfile.mkdtemp(dir=root))
        save(_BY_NAME[name], dtype, partial, max_shard_size=max_shard_size)
        try:
            partial.rename(directory)
        except OSError:
            shutil.rmtree(partial)
    return directory


def save(
    model: ZooModel, dtype: torch.dtype, directory: Path, *, max_shard_size: str | int | None = None
) -> PreTrainedModel:
    """Saves a model as a checkpoint; returns what was saved."""
    built = model.build(dtype)
    built.save_pretrained(directory, max_shard_size=max_shard_size or "1GB")
    return built


def load(directory: Path, dtype: torch.dtype, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Opens a checkpoint with stock transformers and eager experts; returns the model and the loading report."""
    config = AutoConfig.from_pretrained(directory)
    cls = getattr(transformers, config.architectures[0])
    options = {"experts_implementation": "eager", "dtype": dtype, "local_files_only": True} | options
    model, report = cls.from_pretrained(directory, output_loading_info=True, **options)
    return model.eval(), report


def stock(source: str | Path, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """Stock transformers with eager experts.

    Args:
        source: A checkpoint directory, or a name of ``checkpoint`` (then saved in a temporary directory first).
        dtype: Of the weights.
        **options: Further options of ``from_pretrained``.
    """
    if isinstance(source, str) and source in _BY_NAME:
        with tempfile.TemporaryDirectory() as directory:
            # Read into memory of its own: a mapped file must not outlive its directory's name.
            return load(checkpoint(source, dtype, Path(directory)), dtype, **options)[0]
    return load(Path(source), dtype, **options)[0]
