"""Reads the headers of safetensors files: where each tensor lies. Headers are hostile input."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from coterie.errors import CheckpointFileError
from coterie.files.regular import regular_file
from coterie.spec import DTYPE_BYTES, FileStamp

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit on the JSON header."""


class TensorKeeper(Protocol):
    """Whoever has read tensors of a file already, and keeps them until they are asked for."""

    def take(self, info: TensorInfo) -> torch.Tensor | None:
        """The tensor, which is not kept any longer; None if it is not there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: Name in the checkpoint.
        path: The file.
        dtype: safetensors' name of the dtype.
        shape: Shape.
        offset: Byte offset in the file.
        nbytes: Size in bytes.
        stamp: What the file was when its header was read; None if that was somewhere else. Another file is not read.
        keeper: Who is asked for the tensor before the file is.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    stamp: FileStamp | None = field(default=None, compare=False, repr=False)
    keeper: TensorKeeper | None = field(default=None, compare=False, repr=False)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads and checks the header of a safetensors file.

    Raises:
        CheckpointFileError: If the file is missing, truncated, or its header is not consistent with its size.
    """
    try:
        with regular_file(path) as file:
            stamp = FileStamp.of(os.fstat(file.fileno()))
            size = stamp.nbytes
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise _malformed(path, f"the header claims {length} bytes, the file has {size}", size=size)
            raw = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointFileError(
            f"{path} does not exist.", advice="Download the missing shard, or correct the index.", path=path
        ) from None
    except OSError as error:
        raise CheckpointFileError(
            f"{path} cannot be read: {error.strerror}.", advice="Check what it is, and its permissions.", path=path
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _malformed(path, f"the header is not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise _malformed(path, "the header is not a JSON object")
    raw.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + length, stamp) for name, entry in raw.items()}


def _tensor(path: Path, name: str, entry: Any, base: int, stamp: FileStamp) -> TensorInfo:
    size = stamp.nbytes
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(path, f"the entry of {name!r} is not complete", tensor=name) from error
    if dtype not in DTYPE_BYTES:
        raise _malformed(path, f"{name!r} has the unknown dtype {dtype!r}", tensor=name)
    if not whole or end - begin != prod(shape) * DTYPE_BYTES[dtype]:
        raise _malformed(path, f"{name!r} has offsets that do not fit its shape", tensor=name)
    if base + end > size:
        raise CheckpointFileError(
            f"{path} is truncated: {name!r} ends at byte {base + end}, the file has {size}.",
            advice="Download the file again.",
            path=path,
            tensor=name,
            expected=base + end,
            got=size,
        )
    return TensorInfo(
        name=name, path=path, dtype=dtype, shape=shape, offset=base + begin, nbytes=end - begin, stamp=stamp
    )


def _malformed(path: Path, what: str, **facts: object) -> CheckpointFileError:
    return CheckpointFileError(
        f"{path} is not a valid safetensors file: {what}.", advice="Download the file again.", path=path, **facts
    )
