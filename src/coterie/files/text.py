"""Texts of users: UTF-8 whatever the locale is, without the byte order mark that some editors write."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from coterie.errors import InputError

MAX_TEXT_BYTES = 256 * 2**20
"""Of a text that is read whole: some fifty million tokens."""

PART_CHARACTERS = 1 << 18
"""Characters of a part of a long text: enough that its ends do not matter, little enough to be tokenised at once."""

_PIECE = 1 << 20
_PATH_LIKE = re.compile(r"\S*[/\\]\S*|\S*\.[A-Za-z0-9]{1,5}")
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: str | Path, *, filled: bool = False) -> str:
    """The content of a UTF-8 file, line ends as they are.

    A pipe is read to its end (``<(command)`` of a shell is one); a device is not read.

    Args:
        path: The file.
        filled: Whether there has to be some text in it.

    Raises:
        InputError: If there is no such file, it is too large or empty, or it is not UTF-8. Fact ``path``.
    """
    file = Path(path)
    try:
        with _opened(file) as stream:
            data = stream.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(
            f"{file} is larger than the limit of {MAX_TEXT_BYTES >> 20} MiB for a text.",
            advice="Cut it into several files.",
            path=file,
        )
    text = decode_text(data, str(file), path=file)
    if filled and not text.strip():
        raise InputError(f"{file} is empty.", advice="Give a text of some thousand words.", path=file)
    return text


def check_text(path: str | Path) -> None:
    """Finds out before any work is done that there is no such file; reads nothing of it.

    Raises:
        InputError: If nothing is there, or a directory.
    """
    file = Path(path)
    try:
        if stat.S_ISDIR(file.stat().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError as error:  # a null byte, or half of a surrogate pair
        raise _unreadable(file, OSError(errno.EINVAL, "this is not a name of a file")) from error


def read_prompt(path: str | Path) -> str:
    """A prompt in a UTF-8 file: its lines end in a newline alone, and the end of the last one is no part of it."""
    return _as_prompt(read_text(path))


def prompt_or_file(given: str) -> str:
    """A prompt that is given as it is, or as the name of the file that it is in.

    What names something that is there is a file. What has no space in it, and a slash, a backslash or an ending such as
    ``.txt``, was meant to be one.

    Args:
        given: The prompt, or a path.

    Raises:
        InputError: If it looks like the path of a file that is not there, or is that of something that cannot be read.
    """
    path = Path(given)
    try:
        is_there = bool(given.strip()) and path.exists()
    except (OSError, ValueError):  # too long for a name, or with what no name has
        is_there = False
    if is_there:
        return read_prompt(path)
    if _PATH_LIKE.fullmatch(given):
        raise InputError(
            f"There is no file {given}.",
            advice="Check the path; or give the text itself, in quotes.",
            path=given,
        )
    return _as_prompt(given)


def read_prompt_from_stdin() -> str:
    """The prompt on standard input, likewise.

    Raises:
        InputError: If it is too large or not UTF-8.
    """
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:  # a program that runs the command line within itself has put a text there
        return _as_prompt(sys.stdin.read())
    data = stream.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"stdin has more than the limit of {MAX_TEXT_BYTES >> 20} MiB for a text.")
    return _as_prompt(decode_text(data, "stdin"))


def decode_text(data: bytes, name: str, **facts: object) -> str:
    """UTF-8 bytes as a text, without a byte order mark.

    Args:
        data: The bytes.
        name: Where they are from, for the error.
        **facts: For the error.

    Raises:
        InputError: If they are not UTF-8; fact ``position``, of the first byte that is not.
    """
    try:
        return data.decode("utf-8").removeprefix("\N{BYTE ORDER MARK}")
    except UnicodeDecodeError as error:
        raise _not_text(
            name, data[:2], f"{error.reason} at byte {error.start}", position=error.start, **facts
        ) from error


def text_parts(path: str | Path, characters: int = PART_CHARACTERS) -> Iterator[str]:
    """The content of a UTF-8 file in parts that end between lines where lines are not too long; as it is.

    Args:
        path: The file; of any size, since no more than a part is in memory.
        characters: Of a part, at least; at most twice as many.

    Raises:
        InputError: If there is no such file, or when it turns out not to be UTF-8.
    """
    file = Path(path)
    try:
        with _opened(file) as stream:
            yield from _parts(file, stream, characters)
    except OSError as error:
        raise _unreadable(file, error) from error


def _parts(file: Path, stream: BinaryIO, characters: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    waiting, before, start, begun = "", 0, b"", False
    while True:
        piece = stream.read(_PIECE)
        start = start or piece[:2]
        rest = len(decoder.getstate()[0])
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            position = before - rest + error.start
            raise _not_text(
                str(file), start, f"{error.reason} at byte {position}", position=position, path=file
            ) from error
        waiting += text if begun else text.removeprefix("\N{BYTE ORDER MARK}")
        begun = begun or bool(text)
        before += len(piece)
        while len(waiting) >= 2 * characters or (not piece and waiting):
            end = waiting.find("\n", characters - 1, 2 * characters - 1) + 1
            end = end or min(2 * characters, len(waiting))
            yield waiting[:end]
            waiting = waiting[end:]
        if not piece:
            return


def _opened(path: Path) -> BinaryIO:
    """A file or a pipe, for reading. One into which nobody writes is at its end: it is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a null byte, or half of a surrogate pair
        raise OSError(errno.EINVAL, "this is not a name of a file", str(path)) from error
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or os.isatty(descriptor)):
            raise OSError(errno.EINVAL, "it is a device", str(path))
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _as_prompt(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def _unreadable(file: Path, error: OSError) -> InputError:
    return InputError(
        f"The text {file} cannot be read: {error.strerror or error}.", advice="Check the path.", path=file
    )


def _not_text(name: str, start: bytes, reason: str, **facts: object) -> InputError:
    if start in _WIDE_MARKS:
        return InputError(f"{name} is UTF-16 text, not UTF-8.", advice="Save it as UTF-8.", **facts)
    return InputError(f"{name} is not UTF-8 text ({reason}).", advice="Save or convert it as UTF-8.", **facts)
