"""Values of ``config.json`` that transformers takes without looking: names of classes and dtypes, and numbers of parts.

A number of layers is a loop in the constructor of a configuration. So it has to be plausible before there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from coterie.errors import CheckpointFileError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MOST_PARTS = 100_000
"""More layers, experts, heads or the like than this are no model."""

_COUNTED = re.compile(
    r"layer|depth|block|expert|head|stage|label|group|level|codebook|mtp|nextn|dense_replace|indices|(^|_)num_"
)
_NOT_COUNTED = re.compile(
    r"token|vocab|position|length|ctx|context|window|_ids?$|size|embed|elements|frames|samples|pixels|params"
)
_DTYPE_KEYS = ("dtype", "torch_dtype")


def computing_dtype(name: str) -> torch.dtype | None:
    """The dtype of this name if a model can compute in it, else None."""
    dtype = getattr(torch, name, None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1 else None


def check_values(raw: Mapping[str, Any], path: Path) -> None:
    """Refuses what would make transformers loop, or fail without a name.

    Args:
        raw: The content of ``config.json``.
        path: Where it is, for messages.

    Raises:
        CheckpointFileError: Naming the key.
    """
    architectures = raw.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise _error(path, "architectures", architectures, "it has to be a list of names of classes")
    for key, value in _leaves(raw, ""):
        name = key.rpartition(".")[2]
        if name == "model_type" and not isinstance(value, str | None):
            raise _error(path, key, value, "it has to be a text")
        if name in _DTYPE_KEYS and isinstance(value, str) and computing_dtype(value) is None:
            raise _error(path, key, value, "it is no dtype that a model can compute in, such as bfloat16")
        counted = _COUNTED.search(name) and not _NOT_COUNTED.search(name)
        if counted and type(value) is int and abs(value) > MOST_PARTS:
            raise _error(path, key, value, f"no model has more than {MOST_PARTS:,}")
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise _error(path, key, value, "no tensor can hold such a number")
        if name == "is_encoder_decoder" and not isinstance(value, bool | None):
            raise _error(path, key, value, "it has to be true or false")
        if name == "partial_rotary_factor" and isinstance(value, int | float) and not 0 <= value <= 1:
            raise _error(path, key, value, "it is a share of a head's dimensions")
        section = value.get("mrope_section") if isinstance(value, Mapping) else None
        if section is not None and not _are_counts(section):
            raise _error(path, f"{key}.mrope_section", section, "it has to be a list of numbers of dimensions")


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def check_agreement(config: PreTrainedConfig, path: Path) -> None:
    """Refuses values that do not go together, and would make a model fail in its first forward pass only.

    Args:
        config: What transformers made of ``config.json``.
        path: Where that is, for messages.

    Raises:
        CheckpointFileError: Naming the key.
    """
    wish, own = config.is_encoder_decoder, getattr(type(config), "is_encoder_decoder", False)
    if wish and not own:
        raise _error(path, "is_encoder_decoder", wish, f"a model of the type {config.model_type!r} has no encoder")
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        _check_groups(part, path)


def _check_groups(config: Any, path: Path) -> None:
    """The router's groups of experts: of one size, with no more chosen than there are."""
    groups = getattr(config, "n_group", None)
    experts = getattr(config, "n_routed_experts", None)
    if type(groups) is not int or type(experts) is not int:
        return
    if groups < 1 or experts % groups:
        raise _error(path, "n_group", groups, f"{experts} experts (n_routed_experts) do not make so many groups")
    # A group's score is that of its two best experts, but where the method says otherwise.
    if groups > 1 and experts // groups < 2 and getattr(config, "topk_method", "noaux_tc") == "noaux_tc":
        raise _error(path, "n_group", groups, f"groups of {experts} experts (n_routed_experts) would have one each")
    chosen = getattr(config, "topk_group", None)
    if type(chosen) is int and not 1 <= chosen <= groups:
        raise _error(path, "topk_group", chosen, f"there are {groups} groups (n_group)")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value within a value, itself included, with its path; the items of a list under the list's own."""
    if isinstance(value, Mapping):
        yield key, value
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        yield key, value
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def _error(path: Path, key: str, value: object, what: str) -> CheckpointFileError:
    return CheckpointFileError(
        f"{path} has the value {ascii(value)[:60]} for {key}: {what}.",
        advice="Correct it, or download the file again.",
        path=path,
        key=key,
        got=value,
    )
