"""How a checkpoint says that it is quantised, and which ways of it are streamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coterie.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ORIGINAL = "Use the model's original bf16 or fp16 checkpoint"
_AS_SMALL = "with 'coterie extract … --scheme int4' its store becomes about as small"
_FP8 = "or a release of it whose quant_method is 'fp8' (with weight_scale_inv)"
_ADVICE = {
    "compressed-tensors": f"{_ORIGINAL}, {_FP8}; {_AS_SMALL}.",
    "fbgemm_fp8": f"{_ORIGINAL}, {_FP8}.",
    "quark": f"{_ORIGINAL}, or a release of it whose quant_method is 'fp8' or 'mxfp4'.",
    "gguf": f"{_ORIGINAL} in safetensors files; {_AS_SMALL}.",
    "coterie": "This is the name of Coterie's own plug-in, not of a quantisation; remove quantization_config.",
} | dict.fromkeys(("awq", "bitsandbytes", "gptq", "mlx", "modelopt"), f"{_ORIGINAL}; {_AS_SMALL}.")
_OTHERWISE = f"{_ORIGINAL}, or a release of it in FP8 (quant_method 'fp8') or MXFP4 ('mxfp4')."
_MARKS = {
    "mlx": ("group_size", "bits"),
    "bitsandbytes": ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"),
    "modelopt": ("quant_algo", "producer"),
    "compressed-tensors": ("config_groups",),
}
"""Keys by which a quantisation is told that does not give its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """The quantisation of a checkpoint.

    Attributes:
        method: ``fp8`` (float8 weights with scales of blocks) or ``mxfp4`` (4-bit experts of gpt-oss).
        block: Rows and columns of a block that the configuration states; None for one scale per tensor.
    """

    method: Literal["fp8", "mxfp4"]
    block: tuple[int, int] | None = None


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
    found = raw.get("quantization_config")
    # MLX has its own key; compressed-tensors had one. transformers reads neither, and would misread the weights.
    for key in ("quantization", "compression_config"):
        if not found and isinstance(raw.get(key), dict):
            raise _unsupported(raw[key], path)
    if not found:
        return None
    if not isinstance(found, dict):
        raise _unsupported(found, path)
    method = _method(found)
    if method == "mxfp4":
        return Quantisation(method="mxfp4")
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


def remove_quantisation(config: PreTrainedConfig) -> None:
    """Takes the note of quantisation out of a configuration: the model that is built computes with what it decodes."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config


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
