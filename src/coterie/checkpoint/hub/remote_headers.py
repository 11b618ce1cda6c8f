"""Headers of safetensors files of a repository, read without the rest of the files."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.checkpoint.headers import TensorInfo, malformed, tensors_of
from coterie.files.safetensors_header import (
    CHECKPOINT_HEADER,
    LENGTH_BYTES,
    HeaderProblem,
    HeaderText,
    header_length,
)
from coterie.records.remote.attempts import Attempts
from coterie.records.remote.failures import PROBLEMS, BrokenAnswer
from coterie.records.remote.rate import RateLimit
from coterie.records.remote.requests import opened

_FIRST = 100_000
"""Bytes asked for at first: most headers are shorter."""

_PARSING = threading.Lock()
"""A header may ask for many times its size while it is parsed, and several are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteHeader:
    """The header of a file that is not here.

    Attributes:
        tensors: What it says, by tensor.
        content: The first bytes of the file, up to the header's end.
    """

    tensors: Mapping[str, TensorInfo]
    content: bytes


def read_remote_header(
    url: str, path: Path, nbytes: int, attempts: Attempts, rate: RateLimit | None = None
) -> RemoteHeader:
    """Reads the header of one file by its first bytes, wherever the server ends them.

    Args:
        url: The file's address.
        path: Where the file will be once it is downloaded.
        nbytes: Its size.
        attempts: When it is tried again.
        rate: Holds it back.

    Raises:
        RequestFailure: If it cannot be read.
        CheckpointFileError: If it is not a header.
    """
    data = bytearray()
    while True:
        wanted = _wanted(data, path, nbytes)
        if len(data) >= wanted:
            text = bytes(data[LENGTH_BYTES:wanted])
            with _PARSING:
                tensors = tensors_of(HeaderText(text=text, length=len(text), size=nbytes), path)
            return RemoteHeader(tensors=tensors, content=bytes(data[:wanted]))
        try:
            with opened(url, first=len(data), last=max(wanted, min(_FIRST, nbytes)) - 1) as answer:
                if answer.start != len(data):
                    data.clear()  # the server knows no ranges and begins anew; what is behind the header is not read
                for chunk in answer.chunks:
                    data += chunk
                    if rate is not None:
                        rate.take(len(chunk), attempts.stopped)
                    if len(data) >= _wanted(data, path, nbytes):
                        break
            if len(data) < wanted:
                raise BrokenAnswer(f"only {len(data):,} bytes of its header were sent")
        except PROBLEMS as error:
            attempts.failed(error, len(data))


def _wanted(data: bytearray, path: Path, nbytes: int) -> int:
    """Bytes up to the end of the header, as far as it is known by now."""
    if len(data) < min(LENGTH_BYTES, nbytes):
        return LENGTH_BYTES
    try:
        return LENGTH_BYTES + header_length(bytes(data[:LENGTH_BYTES]), nbytes, CHECKPOINT_HEADER.nbytes)
    except HeaderProblem as problem:
        raise malformed(path, problem) from None
