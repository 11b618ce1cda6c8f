"""The files that results are written to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from coterie.files.replacing import replacing


def write_text_file(path: Path, lines: Iterable[str]) -> None:
    """Writes lines to a file, which appears whole or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    write_bytes_file(path, (f"{line}\n".encode() for line in lines))


def write_bytes_file(path: Path, parts: Iterable[bytes]) -> None:
    """Writes bytes to a file, which appears whole or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        file.writelines(parts)
