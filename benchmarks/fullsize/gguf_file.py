"""The GGUF file format, as much of it as writing a model takes: header, metadata, tensors one after the other.

Of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian. The gguf package reads it back
in the tests; its own writer keeps no track of what is finished, and an interrupted file of 17 GB must not start anew.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fullsize.progress import Progress

F32 = 0
Q4_0 = 2
"""Types of tensors, by the format's numbers."""

MOSTLY_Q4_0 = 2
"""``general.file_type``."""

Value = int | float | bool | str | list[str] | list[int]

_MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_SYNC_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor that is to be written.

    Attributes:
        name: Its name.
        shape: Its shape, as numpy has it (the format lists it innermost first).
        type: Its type's number.
        nbytes: Its size.
        chunks: Gives its bytes in order; called when its turn comes.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    nbytes: int
    chunks: Callable[[], Iterable[bytes | memoryview]]


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[GgufTensor]) -> None:
    """Writes a file, or goes on where an interrupted run with equal arguments has stopped.

    Tensors that are whole stay; the file has its name only when it is finished.

    Args:
        path: The file; nothing is done if it exists.
        metadata: Keys and values; whole numbers become uint32, lists of them int32.
        tensors: In the order of the file.
    """
    if path.exists():
        return
    offsets, end = _offsets(tensors)
    header = _header(metadata, tensors, offsets)
    partial = path.with_name(f".{path.name}.partial")
    finished = _finished(partial, header, tensors, offsets)
    progress = Progress(path.name, end, offsets[finished] if finished < len(tensors) else end)
    with partial.open("r+b" if finished else "wb") as file:
        if not finished:
            file.write(header)
        for tensor, offset in zip(tensors[finished:], offsets[finished:], strict=True):
            file.seek(len(header) + offset)
            _write(file, tensor, progress)
        file.truncate(len(header) + end)
        _flush(file)
    partial.rename(path)


def _write(file: BinaryIO, tensor: GgufTensor, progress: Progress) -> None:
    written = since = 0
    for chunk in tensor.chunks():
        nbytes = memoryview(chunk).nbytes
        file.write(chunk)
        written += nbytes
        since += nbytes
        if since >= _SYNC_BYTES:
            _flush(file)
            since = 0
        progress.advance(nbytes)
    if written != tensor.nbytes:
        raise ValueError(f"{tensor.name} gave {written} bytes instead of {tensor.nbytes}.")
    padding = -written % _ALIGNMENT
    file.write(bytes(padding))
    progress.advance(padding)
    file.flush()


def _flush(file: BinaryIO) -> None:
    """To the disk and out of the page cache, which a memory cgroup counts."""
    file.flush()
    os.fdatasync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _finished(partial: Path, header: bytes, tensors: Sequence[GgufTensor], offsets: Sequence[int]) -> int:
    """How many tensors an interrupted run has written whole: the file only ever grows."""
    if not partial.exists():
        return 0
    with partial.open("rb") as file:
        if file.read(len(header)) != header:
            return 0
    size = partial.stat().st_size - len(header)
    return sum(offset + tensor.nbytes <= size for tensor, offset in zip(tensors, offsets, strict=True))


def _offsets(tensors: Sequence[GgufTensor]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += tensor.nbytes + -tensor.nbytes % _ALIGNMENT
    return offsets, end


def _header(metadata: Mapping[str, Value], tensors: Sequence[GgufTensor], offsets: Sequence[int]) -> bytes:
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    parts += [_string(key) + _value(value) for key, value in metadata.items()]
    for tensor, offset in zip(tensors, offsets, strict=True):
        dimensions = tensor.shape[::-1]
        parts += [
            _string(tensor.name),
            struct.pack("<I", len(dimensions)),
            struct.pack(f"<{len(dimensions)}Q", *dimensions),
        ]
        parts.append(struct.pack("<IQ", tensor.type, offset))
    header = b"".join(parts)
    return header + bytes(-len(header) % _ALIGNMENT)


def _value(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case [str(), *_]:
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, map(str, value)))
        case _:
            return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
