"""How a checkpoint says that it is quantised, and which ways of it are streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coterie.errors import UnsupportedError
from coterie.hf import packings as read
from coterie.hf.packings import Packings, Refused
from coterie.spec.packing import PackingKind

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ORIGINAL = "Use the model's original bf16 or fp16 checkpoint"
_AS_SMALL = "with 'coterie extract … --scheme int4' its store becomes about as small"
_FP8 = "or a release of it whose quant_method is 'fp8' (with weight_scale_inv)"
_ADVICE = {
    "fbgemm_fp8": f"{_ORIGINAL}, {_FP8}.",
    "quark": f"{_ORIGINAL}, or a release of it whose quant_method is 'fp8' or 'mxfp4'.",
    "gguf": f"{_ORIGINAL} in safetensors files; {_AS_SMALL}.",
    "coterie": "This is the name of Coterie's own plug-in, not of a quantisation; remove quantization_config.",
} | dict.fromkeys(("bitsandbytes", "modelopt"), f"{_ORIGINAL}; {_AS_SMALL}.")
_OTHERWISE = f"{_ORIGINAL}, or a release of it in FP8 (quant_method 'fp8') or MXFP4 ('mxfp4')."
_MARKS = {
    "gptq": ("desc_act",),
    "mlx": ("group_size", "bits"),
    "bitsandbytes": ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"),
    "modelopt": ("quant_algo", "producer"),
    "compressed-tensors": ("config_groups",),
}
"""Keys by which a quantisation is told that does not give its name."""
_KEYS = ("quantization_config", "quantization", "compression_config")
_PACKED: dict[str, Callable[[dict[str, Any]], Packings]] = {
    "gptq": read.gptq,
    "auto-round": read.auto_round,
    "intel/auto-round": read.auto_round,
    "awq": read.awq,
    "mlx": read.mlx,
}
"""quant_method → what reads its settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """The quantisation of a checkpoint.

    Attributes:
        method: ``fp8`` (float8 weights with scales of blocks, or of rows) or ``mxfp4`` (4-bit experts of gpt-oss),
            which are used as they lie; or whose packing it is, of codes that become those of a scheme.
        block: Rows and columns of a block that the configuration states; None for one scale per tensor, or per row.
        packings: How weights are packed; None for what is used as it lies.
    """

    method: Literal["fp8", "mxfp4"] | PackingKind
    block: tuple[int, int] | None = None
    packings: Packings | None = None


def read_quantisation(raw: dict[str, Any], path: Path) -> Quantisation | None:
    """What ``config.json`` says about quantisation.

    Args:
        raw: Its content.
        path: Where it is, for messages.

    Returns:
        The quantisation, or None if the checkpoint is not quantised.

    Raises:
        UnsupportedError: If it is quantised in a way that is not supported; names the way, and says what to use.
    """
    for part in (value for value in raw.values() if isinstance(value, dict)):
        if part.get("quantization_config"):
            # transformers reads only the root's.
            raise _unsupported(part["quantization_config"], path, "of a part of the model ")
    # MLX has its own key, and compressed-tensors had one.
    found = next((raw[key] for key in _KEYS if raw.get(key)), None)
    if not found:
        return None
    if not isinstance(found, dict):
        raise _unsupported(found, path)
    method = _method(found)
    if method == "mxfp4":
        return Quantisation(method="mxfp4")
    try:
        if method == "compressed-tensors":
            return _compressed_tensors(found)
        if method in _PACKED:
            packings = _PACKED[str(method)](found)
            if packings.kind == "mlx":
                read.check_mlx(raw.get("model_type"))
            return Quantisation(method=packings.kind, packings=packings)
    except Refused as reason:
        raise UnsupportedError(
            f"{path} {reason}.", advice=f"{_ORIGINAL}; {_AS_SMALL}.", path=path, quant_method=method
        ) from None
    if method != "fp8":
        raise _unsupported(found, path)
    if found.get("expert_dtype", "fp8") != "fp8":
        raise UnsupportedError(
            f"{path} has experts in {ascii(found['expert_dtype'])[:40]} packed into bytes, which is not supported.",
            advice=f"{_ORIGINAL}, or a release whose experts are in FP8.",
            path=path,
            quant_method=method,
        )
    return Quantisation(method="fp8", block=_block(found.get("weight_block_size", (128, 128)), path))


def without_quantisation(raw: dict[str, Any]) -> dict[str, Any]:
    """The content of ``config.json`` without what it says about quantisation."""
    return {key: value for key, value in raw.items() if key not in _KEYS}


def remove_quantisation(config: PreTrainedConfig) -> None:
    """Takes the note of quantisation out of a configuration: the model that is built computes with what it decodes."""
    for key in _KEYS:
        if hasattr(config, key):
            delattr(config, key)


def _compressed_tensors(found: dict[str, Any]) -> Quantisation:
    named = read.formats(found)
    if named == {read.PACKED}:
        packings = read.compressed_tensors(found)
        return Quantisation(method=packings.kind, packings=packings)
    if named == {read.NVFP4}:
        packings = read.nvfp4(found)
        return Quantisation(method=packings.kind, packings=packings)
    if named == {read.FLOAT}:
        for weights in read.weights_of(found):
            if weights.get("type") != "float" or weights.get("num_bits") != 8:
                raise Refused("has weights in float-quantized that are not of 8 bits")
        return Quantisation(method="fp8")
    listed = " and ".join(ascii(name)[:40] for name in sorted(named))
    raise Refused(
        f"has weights in compressed-tensors' format {listed}; {read.PACKED}, {read.FLOAT} and {read.NVFP4} are read"
    )


def _method(found: object) -> object:
    if not isinstance(found, dict):
        return found
    stated = found.get("quant_method")
    return stated or next((name for name, keys in _MARKS.items() if any(key in found for key in keys)), None)


def _block(value: object, path: Path) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(n) is int and n > 0 for n in value):
        return int(value[0]), int(value[1])
    raise UnsupportedError(
        f"{path} states blocks of {ascii(value)[:40]}; two positive numbers are needed.",
        advice="Correct weight_block_size in quantization_config.",
        path=path,
        quant_method="fp8",
    )


def _unsupported(found: object, path: Path, where: str = "") -> UnsupportedError:
    method = _method(found)
    return UnsupportedError(
        f"{path} is quantised with {ascii(method)[:60]} {where}".rstrip() + ", which is not supported.",
        advice=_ADVICE.get(str(method), _OTHERWISE),
        path=path,
        quant_method=method,
    )
