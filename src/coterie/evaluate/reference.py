"""What a full model finds, in a directory: computed once, compared with as often as wanted.

``reference.json`` says of what model and texts it is. Each window has a file of its own, ``TEXT-WINDOW.logits``: a
line of JSON (shape, dtype, rows of a slice, what was read, xxh3-128 of all that follows), then its rows in slices, each
with its length in 8 bytes (little-endian) and compressed by zlib. In a slice the first bytes of all values come first,
then their second ones, and so on: sign and exponent of neighbours are alike, and their last bits are not. Nothing is
rounded: what is read back is the same logits to the last bit. Each prompt has a file ``DIGEST.continuation``, JSON with
the tokens that it was continued with and their xxh3-128.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from coterie.errors import InputError, OutputError, UsageError
from coterie.evaluate.reads import Reads
from coterie.files.json_text import JsonLimits, parse_json
from coterie.files.regular import read_bounded, regular_file
from coterie.files.replacing import replacing

REFERENCE_SCHEMA_VERSION = 2
_SLICE_NBYTES = 16 << 20
_LEVEL = 1
"""Of zlib: higher ones take several times as long and save two per cent."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_HEADER = JsonLimits(nbytes=1 << 20, depth=8, values=100_000)
_LINE = 4096
_BEGINNING = "reference.json"


class Reference:
    """A directory of logits and continuations.

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
            there = [name.name for name in self._directory.iterdir()]
        except OSError as error:
            raise OutputError(
                f"{directory} is no directory that logits can be kept in: {error.strerror or error}.",
                advice="Name a new directory in one that exists.",
                path=self._directory,
            ) from error
        # A kill in the middle of the first write leaves a part of it, and nothing else.
        if not all(fnmatch(name, f".{_BEGINNING}.*.partial") for name in there):
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

    def has_logits(self, place: tuple[int, int]) -> bool:
        """Whether a window's logits are there."""
        return self._path(place).exists()

    def keep_logits(self, place: tuple[int, int], logits_TV: Tensor, reads: Reads | None = None) -> None:
        """Writes a window's logits; they are there whole, or not at all.

        Args:
            place: The numbers of the text and of the window.
            logits_TV: The logits [T, V].
            reads: What was read for them, where that is told.

        Raises:
            OutputError: If they cannot be written.
        """
        rows = max(1, _SLICE_NBYTES // (logits_TV.shape[1] * logits_TV.element_size()))
        header = {
            "shape": list(logits_TV.shape),
            "dtype": str(logits_TV.dtype).removeprefix("torch."),
            "rows": rows,
            "reads": None if reads is None else asdict(reads),
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

    def logits(self, place: tuple[int, int], tokens: int, vocabulary: int | None = None) -> tuple[Tensor, Reads | None]:
        """A window's logits [T, V], and what was read for them where that was told.

        Args:
            place: The numbers of the text and of the window.
            tokens: T.
            vocabulary: V, where it is known.

        Raises:
            InputError: If the file is damaged, or not of this window.
        """
        path = self._path(place)
        with _undamaged(path), regular_file(path) as file:
            return _read(file, path.stat().st_size, tokens, vocabulary)

    def has_continuation(self, prompt: str) -> bool:
        """Whether a prompt's continuation is there."""
        return self._continuation(prompt).exists()

    def keep_continuation(self, prompt: str, ids: Sequence[int]) -> None:
        """Writes what a prompt is continued with.

        Args:
            prompt: A digest of the prompt.
            ids: The new tokens.

        Raises:
            OutputError: If it cannot be written.
        """
        with replacing(self._continuation(prompt)) as partial:
            partial.write_text(json.dumps({"ids": list(ids), "checksum": _checksum(ids)}) + "\n", encoding="utf-8")

    def continuation(self, prompt: str, new_tokens: int) -> tuple[int, ...]:
        """What a prompt is continued with.

        Args:
            prompt: A digest of the prompt.
            new_tokens: The most tokens that it may be.

        Raises:
            InputError: If the file is damaged.
        """
        path = self._continuation(prompt)
        with _undamaged(path):
            found = parse_json(read_bounded(path, _HEADER.nbytes), _HEADER)
            ids = found["ids"]
            if not all(type(token) is int for token in ids) or len(ids) > new_tokens:
                raise ValueError(f"it has no tokens, or more than {new_tokens}")
            if found["checksum"] != _checksum(ids):
                raise ValueError("its checksum is another")
            return tuple(ids)

    def _continuation(self, prompt: str) -> Path:
        return self._directory / f"{prompt}.continuation"

    def _path(self, place: tuple[int, int]) -> Path:
        return self._directory / f"{place[0]:05}-{place[1]:05}.logits"


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise InputError(
            f"{path} is damaged: {error}.", advice="Remove it: the same command computes it anew.", path=path
        ) from error


def _checksum(ids: Sequence[int]) -> str:
    return xxhash.xxh3_128(json.dumps(list(ids)).encode()).hexdigest()


def _line(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header).encode() + b"\n"


def _planes(values: Tensor) -> bytes:
    """All first bytes of values, then all second ones, and so on, from the last byte in memory to the first."""
    flat = values.contiguous().view(torch.uint8).reshape(-1, values.element_size())
    return np.ascontiguousarray(flat.numpy().T[::-1]).tobytes()


def _read(file: IO[bytes], size: int, tokens: int, vocabulary: int | None) -> tuple[Tensor, Reads | None]:
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
    return logits_TV, None if header["reads"] is None else Reads(**header["reads"])
