"""Quantised checkpoints of tiny models, and stock transformers opening them dequantised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from zoo.families import ZOO
from zoo.files import load
from zoo.sizes import TEXT
from zoo.weights import build

_WIDE = TEXT | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
_LATENT = {"q_lora_rank": 128, "kv_lora_rank": 128, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 64}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 8, "moe_intermediate_size": 256, "head_dim": 64}),
    "deepseek_v3": (
        "DeepseekV3Config",
        _LATENT
        | {
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "moe_intermediate_size": 384,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 4,
            "topk_group": 2,
        },
    ),
    # Nothing but the hidden size is a multiple of a block.
    "qwen3_moe_ragged": ("Qwen3MoeConfig", {"num_experts": 8, "moe_intermediate_size": 250, "head_dim": 48}),
    "gpt_oss": (
        "GptOssConfig",
        {
            "num_local_experts": 4,
            "intermediate_size": 192,
            "head_dim": 64,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}
_NOT_QUANTISED = ("embed_tokens", "lm_head", "norm", "mlp.gate.")
FP8_CONFIG = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head"],
}
MXFP4_CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.embed_tokens"]}

Tensors = dict[str, torch.Tensor]


def quantised(
    name: str, directory: Path, dtype: torch.dtype = torch.bfloat16, *, scale_fmt: str = "float", **config: Any
) -> Path:
    """Saves a quantised checkpoint: MXFP4 of gpt_oss, FP8 of the others.

    Args:
        name: ``qwen3_moe``, ``deepseek_v3``, ``qwen3_moe_ragged`` or ``gpt_oss``.
        directory: Where to; must not exist.
        dtype: Of what is not quantised, and in which the model computes.
        scale_fmt: ``float`` or ``ue8m0``: dtype of FP8 scales.
        **config: Further keys of ``quantization_config``.
    """
    config_class, options = _CONFIGS[name]
    model_class = ZOO[name.removesuffix("_ragged")].model_class
    build(model_class, getattr(transformers, config_class)(**_WIDE | options), dtype).save_pretrained(directory)
    if name == "gpt_oss":
        return rewrite(directory, _mxfp4, MXFP4_CONFIG | config)
    extra = {} if scale_fmt == "float" else {"scale_fmt": scale_fmt}
    return rewrite(directory, lambda tensors: _fp8(tensors, scale_fmt), FP8_CONFIG | extra | config)


def rewrite(directory: Path, edit: Callable[[Tensors], Tensors], quantization_config: dict[str, Any]) -> Path:
    """Replaces a checkpoint's tensors and says how they are quantised."""
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file({name: t.contiguous() for name, t in edit(tensors).items()}, path, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": quantization_config}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _fp8(tensors: Tensors, scale_fmt: str) -> Tensors:
    found: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and not any(part in name for part in _NOT_QUANTISED):
            found[name], found[f"{name}_scale_inv"] = fp8_blocks(tensor, scale_fmt=scale_fmt)
        else:
            found[name] = tensor
    return found


def fp8_blocks(weight: torch.Tensor, block: int = 128, scale_fmt: str = "float") -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises a matrix with transformers' own operation; what is not a multiple of a block, in equal smaller ones.

    The grid of scales is then as large as with blocks that are smaller at the edges only; transformers takes the size
    of a block from the grid.
    """
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    size = tuple(length // -(-length // block) for length in weight.shape)
    config = FineGrainedFP8Config(weight_block_size=size)
    config.scale_fmt = scale_fmt
    made = Fp8Quantize(SimpleNamespace(quantization_config=config)).convert({"x.weight": [weight]})
    return made["x.weight"], made["x.weight_scale_inv"]


def _mxfp4(tensors: Tensors) -> Tensors:
    found: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            found[f"{name}_blocks"], found[f"{name}_scales"] = mxfp4_blocks(tensor)
        else:
            found[name] = tensor
    return found


def mxfp4_blocks(weight_EKN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises experts ``[E, K, N]`` (as gpt-oss has them in memory) to ``[E, N, K/32, 16]`` and ``[E, N, K/32]``.

    A small reference of our own: transformers' operation is a Triton kernel.
    """
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    groups = weight_EKN.float().transpose(1, 2).unflatten(-1, (-1, 32))
    exponents = torch.floor(torch.log2(groups.abs().amax(-1).clamp(min=2.0**-100))) - 2
    scaled = groups / torch.exp2(exponents)[..., None]
    codes = (scaled.abs()[..., None] - values).abs().argmin(-1) + 8 * (scaled < 0)
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    return blocks, (exponents + 127).to(torch.uint8)


def stock_dequantised(directory: Path, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Stock transformers on a CPU, told to dequantise, with eager experts."""
    from transformers import FineGrainedFP8Config, Mxfp4Config

    method = json.loads((directory / "config.json").read_text())["quantization_config"]["quant_method"]
    config = FineGrainedFP8Config(dequantize=True) if method == "fp8" else Mxfp4Config(dequantize=True)
    # It asks for accelerate before it looks whether anything is left to be accelerated.
    module = "transformers.quantizers.quantizer_finegrained_fp8.is_accelerate_available"
    with mock.patch(module, return_value=True):
        model, report = load(directory, dtype, quantization_config=config)
    wrong = {kind: names for kind, names in report.items() if names}
    if wrong:
        raise AssertionError(f"stock transformers did not load {directory.name}: {wrong}")
    return model
