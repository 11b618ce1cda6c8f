"""Models without weights: every module and parameter on torch's meta device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from coterie.errors import CheckpointFileError, CoterieError, UnsupportedError
from coterie.hf.foreign import reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_FEWEST = 4096
_PER_TENSOR = 12
"""Modules and parameters for each tensor of a checkpoint: a layer with one weight has containers and an activation."""


def build_skeleton(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    path: Path | None = None,
    tensors: int | None = None,
) -> PreTrainedModel:
    """Builds ``cls(config)`` on the meta device: shapes and names, no memory.

    Args:
        cls: The class.
        config: Its configuration.
        dtype: That the model computes in.
        path: Where the configuration is, for messages.
        tensors: How many tensors the checkpoint has; they bound how many parts the model may have.

    Raises:
        UnsupportedError: If the class cannot be built from this configuration.
        CheckpointFileError: If it asks for more parts than the tensors can fill.
    """
    where = f" in {path}" if path is not None else ""
    try:
        with torch.device("meta"), bounded_parts(path, tensors):
            model: PreTrainedModel = cls._from_config(config, dtype=dtype)
    except (CoterieError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a stranger's values may lead to anything
        raise UnsupportedError(
            f"transformers cannot build {cls.__name__} from the configuration{where}: {reason_of(error)}",
            advice="Correct the value that the message names, or download config.json again.",
            path=path,
            architecture=cls.__name__,
        ) from error
    return model.eval()


@contextmanager
def bounded_parts(path: Path | None, tensors: int | None) -> Iterator[None]:
    """Stops this thread's building of a model that has far more parts than a checkpoint has tensors for them.

    Args:
        path: Where the configuration is, for the message.
        tensors: How many tensors there are; None for no bound.

    Raises:
        CheckpointFileError: From within the block.
    """
    if tensors is None:
        yield
        return
    left = _FEWEST + _PER_TENSOR * tensors
    thread = threading.get_ident()

    def count(*_: object) -> None:
        nonlocal left
        if threading.get_ident() != thread:
            return
        left -= 1
        if left < 0:
            raise CheckpointFileError(
                f"{path or 'The configuration'} describes a model with more than "
                f"{_FEWEST + _PER_TENSOR * tensors:,} parts, and the weights are {tensors:,} tensors.",
                advice="Compare its numbers of layers and experts with the weights: they do not belong together.",
                path=path,
                expected=tensors,
            )

    hooks = [register_module_module_registration_hook(count), register_module_parameter_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
