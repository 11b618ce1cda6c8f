"""A piece of a prompt as a file: safetensors, with a checksum of everything before it as the last tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import xxhash
from torch import Tensor

from coterie.files.json_text import JsonLimits, JsonProblem, parse_json
from coterie.files.safetensors_header import (
    LENGTH_BYTES,
    HeaderEntry,
    HeaderProblem,
    HeaderText,
    header_length,
    parse_entries,
)
from coterie.hf.cache_states import Stretch
from coterie.quant.dtypes import SAFETENSORS_DTYPES, TORCH_DTYPES
from coterie.store.disk import Disk
from coterie.store.safetensors_file import SafetensorsHeader, build_header

FORMAT = "coterie-prefix"
VERSION = "1"
_SUM = "checksum"
_SUM_BYTES = 16
_LIMITS = JsonLimits(nbytes=4 << 20, depth=8, values=200_000)
_PARTS = ("keys", "values")


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceFacts:
    """What a file says of its piece.

    Attributes:
        name: The digest of all tokens up to its end, of the model and of whose it is.
        after: That of the piece before it; empty for the first.
        root: That of the beginning: the same for all pieces of the same people.
        model: Digest of the model.
        begin: Tokens before it.
        end: Tokens before what follows it.
        seconds: How long it took to compute.
    """

    name: str
    after: str
    root: str
    model: str
    begin: int
    end: int
    seconds: float


class DamagedPieceError(Exception):
    """A file does not hold what its name says; the message says why. Never leaves this package."""


def write_piece(disk: Disk, file: str, facts: PieceFacts, piece: Stretch) -> int:
    """Writes a piece durably, whole or not at all; returns its bytes.

    Args:
        disk: The directory.
        file: Name in it.
        facts: What is said of it.
        piece: The piece.

    Raises:
        CoterieError: If it cannot be written.
    """
    tensors = _tensors(piece)
    head, header = _header(facts, piece)
    digest = xxhash.xxh3_128()
    with disk.begin(file, header.nbytes) as new:
        position = 0
        for data in chain((memoryview(head),), map(_bytes, tensors.values())):
            digest.update(data)
            new.write(data, position)
            position += len(data)
        new.write(memoryview(digest.digest()), position)
        new.publish()
    return header.nbytes


def file_nbytes(facts: PieceFacts, piece: Stretch) -> int:
    """Bytes of the file of a piece."""
    return _header(facts, piece)[1].nbytes


def piece_of(data: bytearray) -> tuple[PieceFacts, Stretch]:
    """What a file holds. Its tensors are views of the bytes.

    Args:
        data: All bytes of it.

    Raises:
        DamagedPieceError: If these are not what was written.
    """
    if len(data) < LENGTH_BYTES + _SUM_BYTES:
        raise DamagedPieceError(f"it has {len(data)} bytes")
    view = memoryview(data)
    if xxhash.xxh3_128(view[:-_SUM_BYTES]).digest() != view[-_SUM_BYTES:]:
        raise DamagedPieceError("its checksum is not that of its content")
    try:
        length = header_length(bytes(view[:LENGTH_BYTES]), len(data), _LIMITS.nbytes)
        text = bytes(view[LENGTH_BYTES : LENGTH_BYTES + length])
        facts, layers = _said(text)
        entries = {
            one.name: one for one in parse_entries(HeaderText(text=text, length=length, size=len(data)), _LIMITS)
        }
        start = LENGTH_BYTES + length
        held = [_layer(data, start, entries, number) for number in range(layers)]
    except (HeaderProblem, JsonProblem, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedPieceError(f"it is no file of this version ({error})") from error
    return facts, Stretch(facts.begin, facts.end, tuple(held))


def facts_of(beginning: bytes, size: int) -> PieceFacts:
    """What the beginning of a file says of it, its checksum unseen: good for tidying, and for nothing else.

    Args:
        beginning: So many bytes that the header is among them.
        size: Bytes of the file.

    Raises:
        DamagedPieceError: If it says nothing.
    """
    try:
        length = header_length(beginning[:LENGTH_BYTES], size, _LIMITS.nbytes)
        return _said(beginning[LENGTH_BYTES : LENGTH_BYTES + length])[0]
    except (HeaderProblem, JsonProblem, KeyError, TypeError, ValueError) as error:
        raise DamagedPieceError(f"it is no file of this version ({error})") from error


def _header(facts: PieceFacts, piece: Stretch) -> tuple[bytes, SafetensorsHeader]:
    laid = [(name, SAFETENSORS_DTYPES[one.dtype], tuple(one.shape)) for name, one in _tensors(piece).items()]
    return build_header([*laid, (_SUM, "U8", (_SUM_BYTES,))], metadata=_metadata(facts, len(piece.layers)))


def _metadata(facts: PieceFacts, layers: int) -> dict[str, str]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": facts.name,
        "after": facts.after,
        "root": facts.root,
        "model": facts.model,
        "begin": str(facts.begin),
        "end": str(facts.end),
        "layers": str(layers),
        "seconds": repr(facts.seconds),
    }


def _said(text: bytes) -> tuple[PieceFacts, int]:
    """What a header says of the piece, and of how many layers it is."""
    said: Mapping[str, Any] = parse_json(text.rstrip(b" "), _LIMITS)["__metadata__"]
    if (said["format"], said["version"]) != (FORMAT, VERSION):
        raise ValueError("another version")
    begin, end, layers, seconds = int(said["begin"]), int(said["end"]), int(said["layers"]), float(said["seconds"])
    if not (0 <= begin < end and 0 < layers < 100_000 and math.isfinite(seconds)):
        raise ValueError("numbers that cannot be")
    name, after, root, model = (str(said[key]) for key in ("name", "after", "root", "model"))
    facts = PieceFacts(name=name, after=after, root=root, model=model, begin=begin, end=end, seconds=seconds)
    return facts, layers


def _tensors(piece: Stretch) -> dict[str, Tensor]:
    return {
        f"{number}.{part}": tensor.contiguous()
        for number, layer in enumerate(piece.layers)
        if layer is not None
        for part, tensor in zip(_PARTS, layer, strict=True)
    }


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data


def _layer(
    data: bytearray, start: int, entries: Mapping[str, HeaderEntry], number: int
) -> tuple[Tensor, Tensor] | None:
    names = [f"{number}.{part}" for part in _PARTS]
    if not any(name in entries for name in names):
        return None
    keys, values = (_tensor(data, start, entries[name]) for name in names)
    return keys, values


def _tensor(data: bytearray, start: int, entry: HeaderEntry) -> Tensor:
    dtype = TORCH_DTYPES[entry.dtype]
    if not entry.end - entry.begin:
        return torch.empty(entry.shape, dtype=dtype)
    count = (entry.end - entry.begin) // dtype.itemsize
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start + entry.begin).view(entry.shape)
