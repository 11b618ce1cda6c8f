"""Requests that consist of several parts, as browsers send files: ``multipart/form-data``, within limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from coterie.server.refusals import Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MOST_PARTS = 16
LONGEST_FIELD = 64 << 10

_MOST_HEADERS = 8
_LONGEST_HEADER = 1024


@dataclass(slots=True)
class Form:
    """A form.

    Attributes:
        fields: What it says, by the names of its fields.
        files: What was attached, likewise. What the client calls these files is not kept.
    """

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def boundary_of(content_type: str) -> bytes:
    """What stands between the parts.

    Raises:
        Refusal: If the header does not say.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise Refusal(400, "The content type of a form says what stands between its parts: boundary=….")
    return boundary


def read_form(data: bytes, boundary: bytes) -> Form:
    """Takes a form apart.

    Raises:
        Refusal: If it is none, or has too many or too large fields, or one twice.
    """
    reader = _Reader()
    parser = MultipartParser(
        boundary, reader.callbacks(), max_header_count=_MOST_HEADERS, max_header_size=_LONGEST_HEADER
    )
    try:
        parser.write(data)
        parser.finalize()
    except MultipartParseError as error:
        raise _unsound() from error
    if not reader.ended:
        raise _unsound()
    return reader.form


class _Reader:
    """What the parser tells of what it reads."""

    def __init__(self) -> None:
        self.form = Form()
        self.ended = False
        self._parts = 0
        self._data = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._header = (bytearray(), bytearray())
        self._options: dict[bytes, bytes] | None = None

    def callbacks(self) -> MultipartCallbacks:
        """What the parser calls."""
        return {
            "on_part_begin": self.on_part_begin,
            "on_part_data": self.on_part_data,
            "on_part_end": self.on_part_end,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise Refusal(400, f"A form has {MOST_PARTS} fields at most.")
        self._data, self._headers, self._options = bytearray(), {}, None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]
        if not self._is_file and len(self._data) > LONGEST_FIELD:
            raise Refusal(413, f"A field of a form has {LONGEST_FIELD:,} bytes at most.")

    def on_part_end(self) -> None:
        name = _text(self._described.get(b"name"))
        taken: Any = self.form.files if self._is_file else self.form.fields
        if name in self.form.files or name in self.form.fields:
            raise Refusal(400, f"{name} is there twice.", param=name)
        taken[name] = bytes(self._data) if self._is_file else _text(self._data)
        self._data = bytearray()

    def on_end(self) -> None:
        self.ended = True

    @property
    def _described(self) -> dict[bytes, bytes]:
        if self._options is None:
            kind, self._options = parse_options_header(self._headers.get(b"content-disposition", b""))
            if kind != b"form-data":
                raise _unsound()
        return self._options

    @property
    def _is_file(self) -> bool:
        return b"filename" in self._described


def _text(data: bytes | bytearray | None) -> str:
    try:
        text = bytes(data or b"").decode("utf-8")
    except UnicodeDecodeError:
        raise _unsound() from None
    if data is None:
        raise _unsound()
    return text


def _unsound() -> Refusal:
    return Refusal(400, "The request is no sound form.", code="invalid_form")
