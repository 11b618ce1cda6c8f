"""The files that a user names: texts to read, and where results are to be written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from coterie.errors import InputError
from coterie.files.replacing import replacing


def read_text_file(path: Path) -> str:
    """The text of a UTF-8 file, without the newline at its end.

    Raises:
        InputError: If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).", path=path) from error


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
