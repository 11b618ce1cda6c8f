"""What a GGUF file says about the model that it was made from: enough to name it, no more.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from io import BufferedReader
from pathlib import Path

from coterie.errors import UnsupportedError
from coterie.files.regular import regular_file

_MAGIC = b"GGUF"
_MOST_KEYS = 4096
_LONGEST = 2**20
_MOST_ITEMS = 2 * 2**20
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of values of each type; 8 are texts, 9 arrays."""
_TEXT, _ARRAY = 8, 9

_ORIGINAL = ("general.base_model.0.repo_url", "general.source.repo_url", "general.source.url")


class _Unreadable(Exception):
    """The file is not what it says, or asks for more than is worth reading."""


def gguf_error(path: Path) -> UnsupportedError:
    """The error for somebody who passes a GGUF file; names the original where the file does."""
    original = original_of(path)
    whence = "the model's original checkpoint in safetensors files" if original is None else repr(original)
    return UnsupportedError(
        f"{path} is a GGUF file. Coterie reads the checkpoints that GGUF files are made from, not these.",
        advice=f"Use {whence}; with 'coterie extract … --scheme int4' it becomes about as small.",
        path=path,
        original=original,
    )


def original_of(path: Path) -> str | None:
    """The Hub id, or the address, of the model that a GGUF file was made from; None if it does not say."""
    try:
        with regular_file(path) as file:
            found = _texts(file)
    except (OSError, _Unreadable):
        return None
    for key in _ORIGINAL:
        address = found.get(key, "")
        if address:
            return address.removeprefix("https://huggingface.co/").strip("/")
    return None


def _texts(file: BufferedReader) -> dict[str, str]:
    """The texts of the metadata under ``general.``, as far as they can be read."""
    if file.read(4) != _MAGIC:
        raise _Unreadable
    version, _, count = _numbers(file, "<IQQ")
    if version < 2:
        raise _Unreadable
    texts: dict[str, str] = {}
    for _ in range(min(count, _MOST_KEYS)):
        key = _text(file)
        (kind,) = _numbers(file, "<I")
        if kind == _TEXT:
            value = _text(file, skip=not key.startswith("general."))
            if key.startswith("general."):
                texts[key] = value
        else:
            _skip(file, kind)
        if _ORIGINAL[0] in texts:
            break
    return texts


def _skip(file: BufferedReader, kind: int) -> None:
    if kind != _ARRAY:
        file.seek(_size(kind), 1)
        return
    item, count = _numbers(file, "<IQ")
    if count > _MOST_ITEMS or item == _ARRAY:
        raise _Unreadable
    if item == _TEXT:
        for _ in range(count):
            _text(file, skip=True)
    else:
        file.seek(count * _size(item), 1)


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise _Unreadable
    return _SIZES[kind]


def _text(file: BufferedReader, *, skip: bool = False) -> str:
    (length,) = _numbers(file, "<Q")
    if length > _LONGEST:
        raise _Unreadable
    if skip:
        file.seek(length, 1)
        return ""
    text = _read(file, length).decode("utf-8", "replace")
    return "".join(character for character in text if character.isprintable())


def _numbers(file: BufferedReader, form: str) -> tuple[int, ...]:
    return struct.unpack(form, _read(file, struct.calcsize(form)))


def _read(file: BufferedReader, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Unreadable
    return data
