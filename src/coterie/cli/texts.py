"""Reading the texts that a user names."""

from __future__ import annotations

from pathlib import Path

from coterie.errors import InputError


def read_text_file(path: Path) -> str:
    """The text of a UTF-8 file, without the newline at its end.

    Raises:
        InputError: If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).", path=path) from error
