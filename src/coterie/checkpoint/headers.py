"""Reads the headers of safetensors files: where each tensor lies. Headers are hostile input."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from coterie.errors import CheckpointFileError
from coterie.spec import DTYPE_BYTES

MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit on the JSON header."""


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
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads and checks the header of a safetensors file.

    Raises:
        CheckpointFileError: If the file is missing, truncated, or its header is not consistent with its size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(file.read(8), path, size)
            raw = file.read(length)
    except FileNotFoundError:
        raise CheckpointFileError(
            f"{path} does not exist.", advice="Download the missing shard, or correct the index.", path=path
        ) from None
    except PermissionError:
        raise CheckpointFileError(f"{path} cannot be read.", advice="Check its permissions.", path=path) from None
    return parse_header(raw, path, size)


def header_length(first: bytes, path: Path, size: int | None) -> int:
    """Bytes of the JSON header, by the file's first eight bytes.

    Args:
        first: These bytes.
        path: The file, for messages.
        size: Bytes of the file, or None if that is not known.

    Raises:
        CheckpointFileError: If it is more than the file has, or than any header may have.
    """
    length = int.from_bytes(first, "little")
    room = MAX_HEADER_BYTES if size is None else min(MAX_HEADER_BYTES, size - 8)
    if len(first) < 8 or length > room:
        has = "has an unknown number" if size is None else f"has {size}"
        raise _malformed(path, f"the header claims {length} bytes, the file {has}", size=size)
    return length


def parse_header(raw: bytes, path: Path, size: int) -> dict[str, TensorInfo]:
    """Checks a header.

    Args:
        raw: The JSON text.
        path: The file.
        size: Bytes of the file.

    Raises:
        CheckpointFileError: If it is not valid, or not consistent with the file's size.
    """
    try:
        parsed = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _malformed(path, f"the header is not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise _malformed(path, "the header is not a JSON object")
    parsed.pop("__metadata__", None)
    return {name: _tensor(path, name, entry, 8 + len(raw), size) for name, entry in parsed.items()}


def _tensor(path: Path, name: str, entry: Any, base: int, size: int) -> TensorInfo:
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
    return TensorInfo(name=name, path=path, dtype=dtype, shape=shape, offset=base + begin, nbytes=end - begin)


def _malformed(path: Path, what: str, **facts: object) -> CheckpointFileError:
    return CheckpointFileError(
        f"{path} is not a valid safetensors file: {what}.", advice="Download the file again.", path=path, **facts
    )
