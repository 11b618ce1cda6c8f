"""Headers of safetensors files of a repository, read without the rest of the files."""

from __future__ import annotations

import threading
from pathlib import Path

from coterie.checkpoint.headers import TensorInfo, malformed, tensors_of
from coterie.checkpoint.hub.attempts import Attempts
from coterie.checkpoint.hub.failures import PROBLEMS, BrokenAnswer
from coterie.checkpoint.hub.requests import opened
from coterie.files.safetensors_header import (
    CHECKPOINT_HEADER,
    LENGTH_BYTES,
    HeaderProblem,
    HeaderText,
    header_length,
)

_FIRST = 100_000
"""Bytes asked for at first: most headers are shorter."""

_PARSING = threading.Lock()
"""A header may ask for many times its size while it is parsed, and several are read at once."""


def read_remote_header(url: str, path: Path, nbytes: int, attempts: Attempts) -> dict[str, TensorInfo]:
    """Reads the header of one file by its first bytes, wherever the server ends them.

    Args:
        url: The file's address.
        path: Where the file will be once it is downloaded.
        nbytes: Its size.
        attempts: When it is tried again.

    Raises:
        HubFailure: If it cannot be read.
        CheckpointFileError: If it is not a header.
    """
    data = bytearray()
    while True:
        wanted = _wanted(data, path, nbytes)
        if len(data) >= wanted:
            text = bytes(data[LENGTH_BYTES:wanted])
            with _PARSING:
                return tensors_of(HeaderText(text=text, length=len(text), size=nbytes), path)
        try:
            with opened(url, first=len(data), last=max(wanted, min(_FIRST, nbytes)) - 1) as answer:
                if answer.start != len(data):
                    data.clear()  # the server knows no ranges and begins anew; what is behind the header is not read
                for chunk in answer.chunks:
                    data += chunk
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
