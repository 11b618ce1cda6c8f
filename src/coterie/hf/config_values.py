"""Values of ``config.json`` that transformers takes without looking: names of classes and dtypes, and numbers of parts.

A number of layers is a loop in the constructor of a configuration. So it has to be plausible before there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from coterie.errors import CheckpointFileError

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
