"""What the Hub says that a file's bytes are: SHA-256 of large files, git's name of small ones."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

_PIECE = 2**20


class Checksum:
    """The checksum of one file, computed while it arrives.

    Args:
        expected: SHA-256 as 64 hex digits, or git's name of the blob as 40.
        nbytes: Size of the file, which is part of git's name.
    """

    def __init__(self, expected: str, nbytes: int) -> None:
        self.expected = expected
        self._nbytes = nbytes
        self.restart()

    def restart(self) -> None:
        """Begins at the first byte again."""
        if len(self.expected) == 64:
            self._digest = hashlib.sha256()
        else:
            self._digest = hashlib.sha1(b"blob %d\0" % self._nbytes, usedforsecurity=False)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Goes on by these bytes."""
        self._digest.update(data)

    @property
    def right(self) -> bool:
        """Whether what came so far is the whole content."""
        return self._digest.hexdigest() == self.expected

    @property
    def difference(self) -> str:
        """What is wrong, for people."""
        kind = "SHA-256" if len(self.expected) == 64 else "git blob id"
        return f"its {kind} is {self._digest.hexdigest()}, the Hub says {self.expected}"


def checksum_of(path: Path, expected: str, advance: Callable[[int], object] | None = None) -> Checksum:
    """Reads a file and computes its checksum.

    Args:
        path: The file.
        expected: What it should be.
        advance: Told how many more bytes were read.
    """
    with path.open("rb") as file:
        checksum = Checksum(expected, os.fstat(file.fileno()).st_size)
        while piece := file.read(_PIECE):
            checksum.update(piece)
            if advance is not None:
                advance(len(piece))
    return checksum


def is_checksum(text: str | None) -> bool:
    """Whether a tag is one of the two kinds."""
    return text is not None and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None
