"""Checkpoints whose weights are packed: compressed-tensors, NVFP4, GPTQ, AutoRound, AWQ and MLX, written from scratch.

What is written follows from the formats' definitions, one weight at a time and without Coterie's code. Beside each
checkpoint there is another one of the same weights dequantised, which stock transformers opens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from zoo.families import ZOO
from zoo.sizes import TEXT
from zoo.weights import build

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """How a checkpoint is quantised.

    Attributes:
        kind: ``compressed-tensors``, ``nvfp4``, ``gptq``, ``gptq_v2``, ``auto-round``, ``awq`` or ``mlx``.
        bits: Bits of a code.
        group: Weights that share a scale; None for those of a row.
        symmetric: Whether zeros are in the middle.
        scale_dtype: Of scales and biases.
        kept: Parts of the names of matrices that are not quantised.
        config: Further keys of the configuration's entry.
    """

    kind: str
    bits: int = 4
    group: int | None = 128
    symmetric: bool = True
    scale_dtype: torch.dtype = torch.bfloat16
    kept: tuple[str, ...] = _KEPT
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Codes:
    """A quantised matrix: codes [N, K] from 0, scales, zero points and biases [N, G], and the weights [N, K].

    NVFP4 has one divisor of all scales, and neither points nor biases.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    points: torch.Tensor
    biases: torch.Tensor
    weights: torch.Tensor
    divisor: torch.Tensor | None = None


def packed(how: Packed, directory: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path]:
    """Saves a packed checkpoint of a small Qwen3-MoE, and the same one dequantised.

    Args:
        how: How it is quantised.
        directory: Where to; must not exist.
        dtype: Of what is not quantised, and in which the model computes.

    Returns:
        The directories of both.
    """
    wide = TEXT | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
    config = transformers.Qwen3MoeConfig(**wide, num_experts=8, moe_intermediate_size=128, head_dim=64)
    plain = directory / "plain"
    build(ZOO["qwen3_moe"].model_class, config, dtype).save_pretrained(plain)
    written = directory / "packed"
    shutil.copytree(plain, written)
    tensors = load_file(plain / "model.safetensors")
    dequantised: Tensors = {}
    stored: Tensors = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or any(part in name for part in how.kept):
            stored[name] = dequantised[name] = tensor.clone()
            continue
        codes = quantise(tensor.float(), how)
        dequantised[name] = codes.weights.to(dtype)
        stem = name.removesuffix("weight")
        stored |= {stem + end: part for end, part in _PACK[how.kind](codes, how).items()}
    if how.kind == "mlx":
        stored = _stacked(stored)
    for path, content in ((plain, dequantised), (written, stored)):
        content = {name: tensor.contiguous() for name, tensor in content.items()}
        save_file(content, path / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((written / "config.json").read_text())
    raw |= _config(how)
    (written / "config.json").write_text(json.dumps(raw))
    return written, plain


def quantise(weights: torch.Tensor, how: Packed) -> Codes:
    """Rounds to nearest; the weights are those that the format's own library makes of the codes, before rounding."""
    if how.kind == "nvfp4":
        return _quantise_nvfp4(weights)
    rows, columns = weights.shape
    x = weights.view(rows, -1, how.group or columns)
    most = 2**how.bits - 1
    middle = 2 ** (how.bits - 1)
    if how.symmetric and how.kind != "mlx":
        scales = (x.abs().amax(2) / middle).to(how.scale_dtype).clamp_min(1e-5)
        points = torch.full(scales.shape, middle, dtype=torch.int32)
        biases = -middle * scales
    else:
        low, high = x.amin(2).clamp(max=0), x.amax(2).clamp(min=0)
        scales = ((high - low) / most).to(how.scale_dtype)
        points = (-low / scales.float()).round().clamp(0, most).to(torch.int32)
        biases = low.to(how.scale_dtype)
    if how.kind == "mlx":
        codes = ((x - biases.float()[:, :, None]) / scales.float()[:, :, None]).round().clamp(0, most)
        values = codes * scales.float()[:, :, None] + biases.float()[:, :, None]
    else:
        codes = (x / scales.float()[:, :, None] + points[:, :, None]).round().clamp(0, most)
        values = (codes - points[:, :, None]) * scales.float()[:, :, None]
    return Codes(codes.to(torch.int64).view(rows, -1), scales, points, biases, values.view(rows, -1))


def _quantise_nvfp4(weights: torch.Tensor) -> Codes:
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = torch.cat([values, -values])
    x = weights.unflatten(1, (-1, 16))
    divisor = (448 * 6 / weights.abs().amax()).reshape(1)
    scales = (x.abs().amax(2) / 6 * divisor).to(torch.float8_e4m3fn)
    steps = scales.float() / divisor
    codes = (x[..., None] / steps.clamp_min(1e-30)[:, :, None, None] - values).abs().argmin(-1)
    made = (values[codes] * steps[:, :, None]).flatten(1)
    none = torch.empty(0)
    return Codes(codes.flatten(1), scales, none, none, made, divisor)


def tensors_of(made: Codes, how: Packed) -> Tensors:
    """The tensors of one weight by role, as ``coterie.quant.packed`` takes them."""
    roles = {"weight_packed": "codes", "qweight": "codes", "weight": "codes", "weight_scale": "scales"}
    roles |= {"scales": "scales", "biases": "biases", "qzeros": "points", "weight_zero_point": "points"}
    roles |= {"g_idx": "order", "weight_global_scale": "divisor"}
    stored = _PACK[how.kind](made, how).items()
    return {roles[end]: tensor.contiguous() for end, tensor in stored if end in roles}


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [N, K] as int32 words [N, K · bits / 32], the first code in the lowest bits."""
    rows, columns = codes.shape
    stream = ((codes[:, :, None] >> torch.arange(bits)) & 1).reshape(rows, columns * bits // 32, 32)
    values = (stream << torch.arange(32)).sum(-1)
    return (values - (values >> 31 << 32)).to(torch.int32)


def _compressed_tensors(made: Codes, how: Packed) -> Tensors:
    found = {
        "weight_packed": words(made.codes, how.bits),
        "weight_scale": made.scales,
        "weight_shape": torch.tensor(made.codes.shape),
    }
    if not how.symmetric:
        found["weight_zero_point"] = words(made.points.t().long(), how.bits).t()
    return found


def _nvfp4(made: Codes, how: Packed) -> Tensors:
    assert made.divisor is not None, "it is quantised so"
    return {
        "weight_packed": (made.codes[:, 0::2] | made.codes[:, 1::2] << 4).to(torch.uint8),
        "weight_scale": made.scales,
        "weight_global_scale": made.divisor,
        "input_global_scale": torch.ones(1),
    }


def _gptq(made: Codes, how: Packed) -> Tensors:
    columns = made.codes.shape[1]
    less = 0 if how.kind == "gptq_v2" else 1
    # One less, borrowing from the next point where it is 0, as the first version of the format has it.
    points = words(made.points.t().long(), how.bits).long() - less * sum(1 << at for at in range(0, 32, how.bits))
    points = points & 0xFFFFFFFF
    return {
        "qweight": words(made.codes, how.bits).t(),
        "qzeros": (points - (points >> 31 << 32)).to(torch.int32),
        "scales": made.scales.t(),
        "g_idx": (torch.arange(columns) // (how.group or columns)).to(torch.int32),
    }


def _awq(made: Codes, how: Packed) -> Tensors:
    def packed_words(codes: torch.Tensor) -> torch.Tensor:
        ordered = codes.unflatten(1, (-1, 8))[:, :, torch.tensor(_AWQ_ORDER)].flatten(1)
        return words(ordered.long(), how.bits)

    return {
        "qweight": packed_words(made.codes.t()),
        "qzeros": packed_words(made.points.t()),
        "scales": made.scales.t(),
    }


def _mlx(made: Codes, how: Packed) -> Tensors:
    return {"weight": words(made.codes, how.bits).view(torch.uint32), "scales": made.scales, "biases": made.biases}


def _stacked(tensors: Tensors) -> Tensors:
    """Experts as MLX has them: all of a layer in one tensor."""
    found: Tensors = {}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        before, inside, after = name.partition(".experts.")
        if not inside:
            found[name] = tensor
            continue
        number, _, part = after.partition(".")
        experts.setdefault(f"{before}.switch_mlp.{part}", {})[int(number)] = tensor
    for name, of in experts.items():
        # torch cannot stack what is unsigned.
        one = [of[number].view(torch.int32) if name.endswith(".weight") else of[number] for number in sorted(of)]
        found[name] = torch.stack(one).view(torch.uint32) if name.endswith(".weight") else torch.stack(one)
    return found


_PACK: dict[str, Callable[[Codes, Packed], Tensors]] = {
    "compressed-tensors": _compressed_tensors,
    "nvfp4": _nvfp4,
    "gptq": _gptq,
    "gptq_v2": _gptq,
    "auto-round": _gptq,
    "awq": _awq,
    "mlx": _mlx,
}


def _config(how: Packed) -> dict[str, Any]:
    group = -1 if how.group is None else how.group
    if how.kind == "mlx":
        return {"quantization": {"group_size": group, "bits": how.bits} | how.config}
    if how.kind == "nvfp4":
        weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
        inputs = weights | {"dynamic": "local"}
        groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
        found: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
        found |= {"config_groups": groups, "ignore": ["lm_head"]}
    elif how.kind == "compressed-tensors":
        weights = {
            "num_bits": how.bits,
            "type": "int",
            "symmetric": how.symmetric,
            "strategy": "channel" if how.group is None else "group",
            "group_size": how.group,
            "actorder": None,
        }
        found = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
        }
    elif how.kind == "awq":
        found = {"quant_method": "awq", "bits": how.bits, "group_size": group, "zero_point": True, "version": "gemm"}
    elif how.kind == "auto-round":
        found = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "data_type": "int"}
        found |= {"bits": how.bits, "group_size": group, "sym": how.symmetric}
    else:
        found = {"quant_method": "gptq", "checkpoint_format": how.kind, "desc_act": False}
        found |= {"bits": how.bits, "group_size": group, "sym": how.symmetric}
    return {"quantization_config": found | how.config}
