"""The safetensors header: laid out so that data starts on a page, and read back as hostile input.

A file is an 8-byte little-endian length N, N bytes of JSON padded with spaces, then the tensors' bytes without holes.
The stock library opens every file made here; it is not used because it offers no control over where data starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from coterie.files.regular import regular_file
from coterie.files.safetensors_header import (
    LENGTH_BYTES,
    MAX_DIMENSIONS,
    HeaderProblem,
    element_count,
    read_header_text,
)
from coterie.spec import DTYPE_BYTES, RECORD_ALIGNMENT, round_up
from coterie.store.strict_json import Node, dump_json, format_error, parse_json

MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
    """One tensor of a safetensors file.

    Attributes:
        name: Its name.
        dtype: safetensors' name of the dtype.
        shape: Its shape.
        offset: Byte offset in the file (not in the data part).
        nbytes: Bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class SafetensorsHeader:
    """What the header of a file says.

    Attributes:
        tensors: The tensors, in file order.
        metadata: The free texts under ``__metadata__``.
        data_start: Byte offset of the data part.
        nbytes: Size of the whole file.
    """

    tensors: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]
    data_start: int
    nbytes: int


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], *, metadata: Mapping[str, str] | None = None
) -> tuple[bytes, SafetensorsHeader]:
    """Lays tensors out one after the other.

    Args:
        tensors: ``(name, dtype, shape)`` in file order.
        metadata: Texts for ``__metadata__``; left out if None.

    Returns:
        The bytes before the data, a multiple of 4096, and what they say.
    """
    value: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    placed: list[tuple[str, str, tuple[int, ...], int, int]] = []
    end = 0
    for name, dtype, shape in tensors:
        nbytes = prod(shape) * DTYPE_BYTES[dtype]
        value[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        placed.append((name, dtype, shape, end, nbytes))
        end += nbytes
    text = dump_json(value)
    start = round_up(LENGTH_BYTES + len(text), RECORD_ALIGNMENT)
    data = (start - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little") + text.ljust(start - LENGTH_BYTES, b" ")
    entries = tuple(
        TensorEntry(name=name, dtype=dtype, shape=shape, offset=start + begin, nbytes=nbytes)
        for name, dtype, shape, begin, nbytes in placed
    )
    return data, SafetensorsHeader(tensors=entries, metadata=metadata or {}, data_start=start, nbytes=start + end)


def read_header(path: Path, *, links: bool = False) -> SafetensorsHeader:
    """Reads and checks the header of a file, and that the data part is exactly what it says.

    Args:
        path: The file.
        links: Whether it may be a link: only where :func:`~coterie.store.manifest_file.check_file` found that out.

    Raises:
        StoreFormatError: If rule R21, R22 or R23 is broken.
        OSError: If the file cannot be read.
    """
    with regular_file(path, links=links) as file:
        try:
            header = read_header_text(file, MAX_HEADER_BYTES)
        except HeaderProblem as problem:
            raise format_error(path, "R21", "byte 0", str(problem)) from None
    start = header.data_start
    if start % RECORD_ALIGNMENT:
        raise format_error(path, "R22", "byte 0", f"data starts at {start}, not a multiple of {RECORD_ALIGNMENT}")
    if not header.text.startswith(b"{"):
        raise format_error(path, "R21", "byte 8", "the header does not start with '{'")
    root = parse_json(header.text.rstrip(b" "), path, rule="R21", place="header")
    metadata: dict[str, str] = {}
    entries: list[tuple[int, int, str, Node]] = []
    for name, node in root.members(limit=MAX_TENSORS):
        if name == "__metadata__":
            metadata = {key: item.text(limit=65_536, rule="R21") for key, item in node.members(limit=1024)}
        else:
            begin, end = _data_offsets(node)
            entries.append((begin, end, name, node))
    entries.sort(key=lambda entry: entry[:3])
    return SafetensorsHeader(
        tensors=_check_entries(entries, path, start, header.size),
        metadata=metadata,
        data_start=start,
        nbytes=header.size,
    )


def _data_offsets(node: Node) -> tuple[int, int]:
    offsets = [
        item.integer(0, rule="R23")
        for item in node.fields("dtype", "shape", "data_offsets")["data_offsets"].items(limit=2)
    ]
    if len(offsets) != 2:
        raise node.error("R23", "data_offsets are two numbers")
    return offsets[0], offsets[1]


def _check_entries(
    entries: list[tuple[int, int, str, Node]], path: Path, start: int, size: int
) -> tuple[TensorEntry, ...]:
    tensors: list[TensorEntry] = []
    position = 0
    for begin, end, name, node in entries:
        value = node.fields("dtype", "shape", "data_offsets")
        dtype = value["dtype"].text(rule="R23")
        if dtype not in DTYPE_BYTES:
            raise value["dtype"].error("R23", f"{dtype!r} is not a dtype of the format")
        shape = tuple(item.integer(0, rule="R23") for item in value["shape"].items(limit=MAX_DIMENSIONS))
        if begin != position:
            what = "overlaps the tensor before" if begin < position else "leaves a hole before it"
            raise value["data_offsets"].error("R23", f"{name[:80]!r} {what}: it begins at {begin}, not {position}")
        if element_count(shape) * DTYPE_BYTES[dtype] != end - begin:
            raise value["data_offsets"].error("R23", f"{end - begin} bytes do not hold {dtype} {list(shape)}")
        tensors.append(TensorEntry(name=name, dtype=dtype, shape=shape, offset=start + begin, nbytes=end - begin))
        position = end
    if start + position != size:
        raise format_error(path, "R23", "end of file", f"data ends at {start + position}, the file at {size}")
    return tuple(tensors)
