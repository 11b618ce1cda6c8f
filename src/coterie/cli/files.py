"""The files that a user names: texts to read, and where results are to be written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from coterie.errors import InputError, UsageError


def read_text_file(path: Path) -> str:
    """The text of a UTF-8 file, without the newline at its end.

    Raises:
        InputError: If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).", path=path) from error


def check_text(path: Path) -> None:
    """Finds before any work is done that there is no such text to read.

    Raises:
        InputError: If nothing is there, or a directory.
    """
    if not path.exists():
        raise InputError(f"The text {path} cannot be read: there is no such file.", advice="Check the path.", path=path)
    if path.is_dir():
        raise InputError(f"The text {path} cannot be read: it is a directory.", advice="Name a file.", path=path)


def check_writable(path: Path, *, appended: bool = False) -> None:
    """Finds before any work is done that a file cannot be written at its end.

    Args:
        path: The file.
        appended: It is written in place, if it is there; other files are replaced by new ones beside them.

    Raises:
        UsageError: If there is no such directory, or it or the file is read-only.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"There is no directory {folder} to write {path.name} in.", path=path)
    target = path.absolute() if appended and path.exists() else folder
    if not os.access(target, os.W_OK):
        raise UsageError(f"{path.name} cannot be written: {target} is read-only.", path=path)


def write_text_file(path: Path, lines: Iterable[str]) -> None:
    """Writes lines to a file, which appears whole or not at all.

    Raises:
        UsageError: If it cannot be written.
    """
    write_bytes_file(path, (f"{line}\n".encode() for line in lines))


def write_bytes_file(path: Path, parts: Iterable[bytes]) -> None:
    """Writes bytes to a file, which appears whole or not at all.

    Raises:
        UsageError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(parts)
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", path=path) from error
    finally:
        partial.unlink(missing_ok=True)
