"""The dtype that a model computes in, as ``dtype="auto"`` of transformers finds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from coterie.checkpoint.headers import TensorInfo
from coterie.checkpoint.location import Location
from coterie.checkpoint.weight_files import WeightFiles
from coterie.errors import CheckpointFileError
from coterie.hf.config_values import computing_dtype
from coterie.hf.configs import config_dtype
from coterie.quant.dtypes import TORCH_DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def model_dtype(config: PreTrainedConfig, tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """The dtype that a configuration states, else that of the first of these tensors.

    Args:
        config: That of the part that is opened: what the whole states says nothing about a part opened by itself.
        tensors: By name, of a model's only file.
    """
    return config_dtype(config) or first_dtype(tensors)


def checkpoint_dtype(location: Location, files: WeightFiles, tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """The dtype of a checkpoint whose configuration states none: the index's, else that of the first file's first key.

    Args:
        location: The checkpoint.
        files: Which files are its weights.
        tensors: All its tensors.

    Raises:
        CheckpointFileError: If the index states something else than a dtype.
    """
    if files.dtype is not None:
        stated = computing_dtype(files.dtype)
        if stated is None:
            path = location.directory / str(files.index)
            raise CheckpointFileError(
                f"{path} states the dtype {ascii(files.dtype)[:40]} (metadata.dtype), in which no model computes.",
                advice="Correct it, or remove it.",
                path=path,
                key="metadata.dtype",
            )
        return stated
    first = location.directory / files.shards[0]
    return first_dtype({name: info for name, info in tensors.items() if info.path == first})


def first_dtype(tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """The dtype of the first tensor that a model can compute in; safetensors lists a file's tensors by name."""
    for _, info in sorted(tensors.items()):
        dtype = TORCH_DTYPES[info.dtype]
        if dtype.is_floating_point and dtype.itemsize > 1:
            return dtype
    return torch.float32
