"""Random weights that exercise a model: spread routing, distinct experts, biases and norms away from their defaults."""

from __future__ import annotations

import zlib

import torch
from transformers import PreTrainedConfig, PreTrainedModel

_STD = 0.08
_NOISE = 0.1


def build(cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Builds ``cls(config)`` with weights that follow from the parameters' names.

    Matrices are normal with a standard deviation of 0.08. Everything that starts at a value with a meaning (norms at
    1, biases at 0, decay rates, routers' correction biases) keeps it, with noise of 0.1 on top.
    """
    torch.manual_seed(0)
    model: PreTrainedModel = cls._from_config(config, dtype=torch.float32)
    persistent = model.state_dict(keep_vars=True)
    with torch.no_grad():
        seen: set[int] = set()
        for name, tensor in sorted(persistent.items()):
            if not tensor.is_floating_point() or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() < 2 or name.endswith(("A_log", "bias")):
                tensor.add_(noise, alpha=_NOISE)
            else:
                tensor.copy_(noise * _STD)
            if not _stays_float32(model, name):
                tensor.data = tensor.data.to(dtype)
    for part in (config, *(getattr(config, key) for key in config.sub_configs)):
        part.dtype = dtype
    for generator_model in (module for module in model.modules() if isinstance(module, PreTrainedModel)):
        if getattr(generator_model, "generation_config", None) is not None:
            generator_model.generation_config.eos_token_id = None
    return model.eval()


def _stays_float32(model: PreTrainedModel, name: str) -> bool:
    """Whether transformers keeps the parameter in float32 when it loads the model in bfloat16."""
    strict: set[str] = set()
    for module in model.modules():
        strict.update(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    return any(f".{part}." in f".{name}." for part in strict)
