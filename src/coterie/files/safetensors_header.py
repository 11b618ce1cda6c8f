"""The header of a safetensors file as hostile input: an 8-byte length N, N bytes of JSON, then the tensors' bytes.

What a stranger's file and a store's file have in common is here: that the length fits the file, and that a shape can be
multiplied out. The store's rules are its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

from coterie.files.json_text import JsonLimits, JsonProblem, parse_json
from coterie.spec import DTYPE_BYTES, FileStamp

LENGTH_BYTES = 8
MAX_DIMENSIONS = 64
"""As many as torch has."""

MAX_ELEMENTS = 2**53 - 1

CHECKPOINT_HEADER = JsonLimits(nbytes=64 * 2**20, depth=8, values=4_000_000)
"""For files of checkpoints: half a million tensors in one file. Released checkpoints have up to 125,000 in all."""


class HeaderProblem(ValueError):
    """A header is not valid; the message says what is wrong.

    Args:
        message: What is wrong.
        tensor: The tensor that it is about, or None.
        needed: Bytes that the file would need, where it is too short for a tensor.
    """

    def __init__(self, message: str, *, tensor: str | None = None, needed: int | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor
        self.needed = needed


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEntry:
    """What a header says of one tensor.

    Attributes:
        name: Its name.
        dtype: safetensors' name of the dtype.
        shape: Its shape.
        begin: Byte offset within the data part.
        end: Byte offset of what follows it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderText:
    """The header's bytes, unread.

    Attributes:
        text: The JSON text, padding included.
        length: What the file says of its length.
        size: Bytes of the file.
        stamp: What the file was; None if it is somewhere else.
    """

    text: bytes
    length: int
    size: int
    stamp: FileStamp | None = None

    @property
    def data_start(self) -> int:
        """Byte offset of the data part."""
        return LENGTH_BYTES + self.length


def read_header_text(file: BufferedReader, limit: int) -> HeaderText:
    """Reads the header's bytes from the start of an open file.

    Raises:
        HeaderProblem: If the length that the file states is beyond ``limit`` or the file.
        OSError: If the file cannot be read.
    """
    stamp = FileStamp.of(os.fstat(file.fileno()))
    length = header_length(file.read(LENGTH_BYTES), stamp.nbytes, limit)
    text = file.read(length)
    if len(text) < length:
        raise HeaderProblem("the file ends within the header")
    return HeaderText(text=text, length=length, size=stamp.nbytes, stamp=stamp)


def header_length(prefix: bytes, size: int, limit: int) -> int:
    """What the first bytes of a file say of the header's length.

    Raises:
        HeaderProblem: If it is beyond ``limit`` or the file.
    """
    length = int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or not 2 <= length <= size - LENGTH_BYTES:
        raise HeaderProblem(f"the header claims {length} bytes, the file has {size}")
    if length > limit:
        raise HeaderProblem(f"the header claims {length} bytes, more than the limit of {limit:,}")
    return length


def parse_entries(header: HeaderText, limits: JsonLimits = CHECKPOINT_HEADER) -> list[HeaderEntry]:
    """What the header says of each tensor, in the order in which it says it.

    Raises:
        HeaderProblem: If it is not JSON within the limits, or an entry does not fit itself or the file.
    """
    try:
        raw = parse_json(header.text, limits)
    except JsonProblem as problem:
        raise HeaderProblem(f"the header: {problem}") from None
    if not isinstance(raw, dict):
        raise HeaderProblem("the header is not a JSON object")
    raw.pop("__metadata__", None)
    return _checked(raw, header.size - header.data_start)


def _checked(raw: Mapping[str, Any], data_nbytes: int) -> list[HeaderEntry]:
    entries = [_entry(name, value, data_nbytes) for name, value in raw.items()]
    position = 0
    for entry in sorted(entries, key=lambda one: (one.begin, one.end)):
        if entry.begin < position:
            raise HeaderProblem(f"{entry.name!r} overlaps another tensor", tensor=entry.name)
        position = entry.end
    return entries


def element_count(shape: Iterable[int]) -> int:
    """The number of elements; beyond ``MAX_ELEMENTS`` any larger number, as many dimensions could make it huge."""
    result, empty = 1, False
    for dimension in shape:
        empty = empty or dimension == 0
        result *= dimension or 1
        if result > MAX_ELEMENTS:
            return MAX_ELEMENTS + 1
    return 0 if empty else result


def _entry(name: str, value: Any, data_nbytes: int) -> HeaderEntry:
    if not name.isprintable() or len(name) > 4096:
        raise HeaderProblem(f"{name[:80]!r} is no name of a tensor", tensor=ascii(name[:80]))
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        raise HeaderProblem(f"the entry of {name!r} is not complete", tensor=name) from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise HeaderProblem(f"{name!r} has the unknown dtype {ascii(dtype)[:40]}", tensor=name)
    if not whole:
        raise HeaderProblem(f"{name!r} has offsets that do not fit its shape", tensor=name)
    elements = MAX_ELEMENTS + 1 if len(shape) > MAX_DIMENSIONS else element_count(shape)
    if elements > MAX_ELEMENTS:
        raise HeaderProblem(f"{name!r} has a shape that no tensor can have", tensor=name)
    if end - begin != elements * DTYPE_BYTES[dtype]:
        raise HeaderProblem(f"{name!r} has offsets that do not fit its shape", tensor=name)
    if end > data_nbytes:
        raise HeaderProblem(f"{name!r} ends beyond the end of the file", tensor=name, needed=end)
    return HeaderEntry(name=name, dtype=dtype, shape=tuple(shape), begin=begin, end=end)
