"""Random weights that exercise a model: spread routing, distinct experts, biases and norms away from their defaults."""

from __future__ import annotations

import copy
import zlib

import torch
from transformers import PreTrainedConfig, PreTrainedModel

_STD = 0.08
_NOISE = 0.1
_SLIGHT = 0.002
_CORRECTION = 0.03
"""Enough to change selections, too little to starve an expert where scores are softmax probabilities near 1/8."""


def build(cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Builds ``cls(config)`` with weights that follow from the parameters' names.

    Matrices are normal with a standard deviation of 0.08. Everything that starts at a value with a meaning (norms at
    1, biases at 0, decay rates) keeps it, with noise of 0.1 on top; routers' correction biases with noise of 0.03.
    """
    torch.manual_seed(0)
    model: PreTrainedModel = cls._from_config(config, dtype=torch.float32)
    persistent = model.state_dict(keep_vars=True)
    dtypes = _dtypes_after_loading(cls, config, dtype)
    with torch.no_grad():
        seen: set[int] = set()
        for name, tensor in sorted(persistent.items()):
            if not tensor.is_floating_point() or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("correction_bias", "expert_bias")):
                tensor.add_(noise, alpha=_CORRECTION)
            elif name.endswith(("balancing_biases", "states_bias", "residual_bias")):
                tensor.add_(noise, alpha=_SLIGHT)
            elif tensor.dim() < 2 or name.endswith(("A_log", "bias")):
                tensor.add_(noise, alpha=_NOISE)
            else:
                tensor.copy_(noise * _STD)
            tensor.data = tensor.data.to(dtypes[name])
    for part in (config, *(getattr(config, key) for key in config.sub_configs)):
        if part is not None:
            part.dtype = dtype
    for generator_model in (module for module in model.modules() if isinstance(module, PreTrainedModel)):
        if getattr(generator_model, "generation_config", None) is not None:
            generator_model.generation_config.eos_token_id = None
    return model.eval()


def _dtypes_after_loading(
    cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype
) -> dict[str, torch.dtype]:
    """The dtype that transformers gives each tensor of the state when it loads the model in ``dtype``."""
    with torch.device("meta"):
        skeleton = cls._from_config(copy.deepcopy(config), dtype=dtype)
    strict: set[str] = set()
    if dtype != torch.float32:
        for module in skeleton.modules():
            strict.update(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    return {
        name: torch.float32 if any(f".{part}." in f".{name}." for part in strict) else tensor.dtype
        for name, tensor in skeleton.state_dict().items()
    }
