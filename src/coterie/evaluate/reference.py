"""Logits of a full model in a directory: computed once, compared with as often as wanted.

``reference.json`` says of what model and texts they are. Each window has a file of its own, ``TEXT-WINDOW.logits``: a
line of JSON (shape, dtype, rows of a slice, xxh3-128 of all that follows), then its rows in slices, each with its
length in 8 bytes (little-endian) and compressed by zlib. In a slice the first bytes of all values come first, then
their second ones, and so on: sign and exponent of neighbours are alike, and their last bits are not. Nothing is
rounded: what is read back is the same logits to the last bit.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from coterie.errors import InputError, OutputError, UsageError
from coterie.files.json_text import JsonLimits, parse_json
from coterie.files.regular import read_bounded, regular_file
from coterie.files.replacing import replacing

REFERENCE_SCHEMA_VERSION = 1
_SLICE_NBYTES = 16 << 20
_LEVEL = 1
"""Of zlib: higher ones take several times as long and save two per cent."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_HEADER = JsonLimits(nbytes=1 << 20, depth=8, values=100_000)
_LINE = 4096
_BEGINNING = "reference.json"


class Reference:
    """A directory of logits.

    Args:
        directory: It is made if it is not there.
        header: Of what they are: texts and numbers only, equal if and only if logits are the same.

    Raises:
        UsageError: If it has the logits of something else, or is no such directory.
        InputError: If it cannot be read.
        OutputError: If it cannot be made.
    """

    def __init__(self, directory: str | Path, header: Mapping[str, Any]) -> None:
        self._directory = Path(directory)
        self._header = {"schema_version": REFERENCE_SCHEMA_VERSION, **json.loads(json.dumps(header))}
        try:
            self._directory.mkdir(exist_ok=True)
            there = any(self._directory.iterdir())
        except OSError as error:
            raise OutputError(
                f"{directory} is no directory that logits can be kept in: {error.strerror or error}.",
                advice="Name a new directory in one that exists.",
                path=self._directory,
            ) from error
        if there:
            self._check()
        else:
            with replacing(self._directory / _BEGINNING) as partial:
                partial.write_text(json.dumps(self._header, indent=2) + "\n", encoding="utf-8")

    def _check(self) -> None:
        path = self._directory / _BEGINNING
        try:
            found = parse_json(read_bounded(path, _HEADER.nbytes), _HEADER)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self._directory} is not empty, and is no directory of logits.",
                advice="Name a new directory; nothing was changed.",
                path=self._directory,
            ) from error
        if found != self._header:
            names = found.keys() | self._header.keys() if isinstance(found, dict) else {"everything"}
            differing = sorted(
                name for name in names if not isinstance(found, dict) or found.get(name) != self._header.get(name)
            )
            raise UsageError(
                f"{self._directory} has the logits of something else: {', '.join(differing)} differ.",
                advice="Use another directory, or remove this one to compute them anew.",
                path=self._directory,
                differing=differing,
            )

    def __contains__(self, place: tuple[int, int]) -> bool:
        """Whether a window's logits are there."""
        return self._path(place).exists()

    def keep(self, place: tuple[int, int], logits_TV: Tensor) -> None:
        """Writes a window's logits; they are there whole, or not at all.

        Raises:
            OutputError: If they cannot be written.
        """
        rows = max(1, _SLICE_NBYTES // (logits_TV.shape[1] * logits_TV.element_size()))
        header = {
            "shape": list(logits_TV.shape),
            "dtype": str(logits_TV.dtype).removeprefix("torch."),
            "rows": rows,
            "checksum": "0" * 32,
        }
        digest = xxhash.xxh3_128()
        with replacing(self._path(place)) as partial, open(partial, "wb") as file:
            file.write(_line(header))
            for part_TV in torch.split(logits_TV, rows):
                packed = zlib.compress(_planes(part_TV), _LEVEL)
                for piece in (len(packed).to_bytes(8, "little"), packed):
                    digest.update(piece)
                    file.write(piece)
            file.seek(0)
            file.write(_line(header | {"checksum": digest.hexdigest()}))

    def load(self, place: tuple[int, int], tokens: int, vocabulary: int | None = None) -> Tensor:
        """A window's logits [T, V].

        Args:
            place: The numbers of the text and of the window.
            tokens: T.
            vocabulary: V, where it is known.

        Raises:
            InputError: If the file is damaged, or not of this window.
        """
        path = self._path(place)
        try:
            with regular_file(path) as file:
                return _read(file, path.stat().st_size, tokens, vocabulary)
        except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
            raise InputError(
                f"{path} is damaged: {error}.",
                advice="Remove it: the same command computes it anew.",
                path=path,
            ) from error

    def _path(self, place: tuple[int, int]) -> Path:
        return self._directory / f"{place[0]:05}-{place[1]:05}.logits"


def _line(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header).encode() + b"\n"


def _planes(values: Tensor) -> bytes:
    """All first bytes of values, then all second ones, and so on, from the last byte in memory to the first."""
    flat = values.contiguous().view(torch.uint8).reshape(-1, values.element_size())
    return np.ascontiguousarray(flat.numpy().T[::-1]).tobytes()


def _read(file: IO[bytes], size: int, tokens: int, vocabulary: int | None) -> Tensor:
    line = file.readline(_LINE)
    header = parse_json(line, _HEADER)
    (count, width), rows, dtype = header["shape"], header["rows"], _DTYPES[header["dtype"]]
    if count != tokens or (vocabulary is not None and width != vocabulary) or not 1 <= rows <= 1 << 32:
        raise ValueError(f"it has logits of {count} tokens and {width} words, not of {tokens} and {vocabulary}")
    logits_TV = torch.empty(count, width, dtype=dtype)
    digest, left = xxhash.xxh3_128(), size - len(line)
    for part_TV in torch.split(logits_TV, rows):
        prefix = file.read(8)
        length, nbytes = int.from_bytes(prefix, "little"), part_TV.numel() * part_TV.element_size()
        left -= 8 + length
        if left < 0:
            raise ValueError("its end is missing")
        packed = file.read(length)
        digest.update(prefix)
        digest.update(packed)
        unpacker = zlib.decompressobj()
        planes = unpacker.decompress(packed, nbytes)
        if len(planes) != nbytes or unpacker.decompress(unpacker.unconsumed_tail, 1):
            raise ValueError("a slice of it has another size")
        bytes_NB = np.frombuffer(planes, np.uint8).reshape(part_TV.element_size(), -1)[::-1].T
        part_TV.view(torch.uint8).copy_(torch.from_numpy(np.ascontiguousarray(bytes_NB)).reshape(part_TV.shape[0], -1))
    if left or digest.hexdigest() != header["checksum"]:
        raise ValueError("its checksum is another")
    return logits_TV
