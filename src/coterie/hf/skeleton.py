"""Models without weights: every module and parameter on torch's meta device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from coterie.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def build_skeleton(cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Builds ``cls(config)`` on the meta device: shapes and names, no memory.

    Raises:
        UnsupportedError: If the class cannot be built from this configuration.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = cls._from_config(config, dtype=dtype)
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise UnsupportedError(
            f"transformers cannot build {cls.__name__} from this configuration: {error}", architecture=cls.__name__
        ) from error
    return model.eval()
