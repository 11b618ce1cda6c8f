"""JSON of unknown origin: parsed within limits, then taken apart value by value with an error that names the place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from coterie.errors import StoreFormatError
from coterie.files.json_text import JsonLimits, JsonProblem
from coterie.files.json_text import parse_json as parse_text

MAX_DEPTH = 16
"""Nesting of arrays and objects beyond which a text is refused without being parsed."""

MAX_INTEGER = 2**53 - 1
"""Largest integer that every JSON reader represents exactly."""

MAX_VALUES = 3_000_000
"""Values of a text, counted before it is parsed: some hundred thousand experts, and a third of a GiB at the worst."""

_LIMITS = JsonLimits(nbytes=64 * 2**20, depth=MAX_DEPTH, values=MAX_VALUES, digits=20, floats=False)

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


_DAMAGED = "The file is damaged or was not written by Coterie; extract the store again."


def format_error(path: Path, rule: str, place: str, message: str, *, advice: str = _DAMAGED) -> StoreFormatError:
    """The error for a broken MUST rule of docs/format.md.

    Args:
        path: The file.
        rule: The rule, such as ``"R4"``.
        place: Key or byte offset within the file.
        message: What is wrong.
        advice: What to do about it.
    """
    return StoreFormatError(
        f"{path}: {rule}: {message} (at {place}).",
        advice=advice,
        path=path,
        rule=rule,
        place=place,
    )


class Node:
    """One value of a JSON text together with its place, read with explicit types and bounds.

    Every method raises :class:`StoreFormatError` if the value is not what it asks for.
    """

    __slots__ = ("_key", "_parent", "_value", "path")

    def __init__(self, value: object, path: Path, parent: Node | None = None, key: str | int | None = None) -> None:
        self._value = value
        self._parent = parent
        self._key = key
        self.path = path

    @property
    def place(self) -> str:
        """Where the value is, such as ``banks[3].layer``."""
        if self._parent is None:
            return "the top level" if self._key is None else str(self._key)
        own = f"[{self._key}]" if isinstance(self._key, int) else f".{self._key}"
        if self._parent._parent is None and self._parent._key is None:
            return own.removeprefix(".")
        return self._parent.place + own

    @property
    def is_null(self) -> bool:
        """Whether the value is ``null``."""
        return self._value is None

    def error(self, rule: str, message: str, *, advice: str = _DAMAGED) -> StoreFormatError:
        """The error that this value breaks ``rule``."""
        return format_error(self.path, rule, self.place, message, advice=advice)

    def has(self, name: str) -> bool:
        """Whether the value is an object that has this key."""
        return name in self._dict("R3")

    def fields(self, *names: str, optional: tuple[str, ...] = ()) -> dict[str, Node]:
        """The members of an object that must have exactly these keys, and may have the optional ones (rule R3)."""
        value = self._dict("R3")
        names = (*names, *(name for name in optional if name in value))
        if value.keys() != set(names):
            missing = [name for name in names if name not in value]
            unknown = [name for name in value if name not in names]
            problem = f"the key {missing[0]!r} is missing" if missing else f"the key {unknown[0][:80]!r} is not known"
            raise self.error("R3", problem)
        return {name: Node(value[name], self.path, self, name) for name in names}

    def members(self, *, limit: int) -> Iterator[tuple[str, Node]]:
        """The members of an object with free keys, at most ``limit`` of them."""
        value = self._dict("R4")
        if len(value) > limit:
            raise self.error("R4", f"{len(value)} entries, more than the limit of {limit}")
        for name in value:
            yield name, Node(value[name], self.path, self, name)

    def items(self, *, limit: int) -> Iterator[Node]:
        """The items of an array, at most ``limit`` of them."""
        if not isinstance(self._value, list):
            raise self.error("R4", f"an array is expected, not {self._shown()}")
        if len(self._value) > limit:
            raise self.error("R4", f"{len(self._value)} items, more than the limit of {limit}")
        for index, item in enumerate(self._value):
            yield Node(item, self.path, self, index)

    def integer(self, low: int, high: int = MAX_INTEGER, *, rule: str = "R4") -> int:
        """An integer (rule R4) from ``low`` to ``high``, both included (the given rule)."""
        if type(self._value) is not int:
            raise self.error("R4", f"an integer is expected, not {self._shown()}")
        if not low <= self._value <= high:
            raise self.error(rule, f"{self._shown()} is outside {low} to {high}")
        return self._value

    def text(
        self, pattern: re.Pattern[str] | None = None, *, limit: int = 4096, rule: str = "R4", empty: bool = False
    ) -> str:
        """A text of 1 to ``limit`` characters without control characters (R4) that is ``pattern`` (the given rule)."""
        if not isinstance(self._value, str):
            raise self.error("R4", f"a text is expected, not {self._shown()}")
        if empty and not self._value:
            return ""
        if not 1 <= len(self._value) <= limit or _CONTROL.search(self._value):
            raise self.error("R4", f"a text of 1 to {limit} printable characters is expected, not {self._shown()}")
        if pattern is not None and not pattern.fullmatch(self._value):
            raise self.error(rule, f"{self._shown()} does not have the form {pattern.pattern}")
        return self._value

    def canonical(self, *, without: str) -> bytes:
        """The object without one key, as :func:`dump_json` writes it."""
        try:
            return dump_json({name: item for name, item in self._dict("R4").items() if name != without})
        except UnicodeEncodeError:
            raise self.error("R4", "a text has half of a surrogate pair") from None

    def _dict(self, rule: str) -> dict[str, object]:
        if not isinstance(self._value, dict):
            raise self.error(rule, f"an object is expected, not {self._shown()}")
        return self._value

    def _shown(self) -> str:
        if isinstance(self._value, list | dict):
            return "an array" if isinstance(self._value, list) else "an object"
        if type(self._value) is int and self._value.bit_length() > 64:
            return "an integer of more than 64 bits"
        shown = json.dumps(self._value)
        return shown if len(shown) <= 80 else f"{shown[:77]}..."


def parse_json(data: bytes, path: Path, *, rule: str, place: str | None = None) -> Node:
    """Parses one JSON text strictly: UTF-8 without BOM, unique keys, no floats, no NaN, bounded nesting.

    Args:
        data: The bytes; the caller has limited their number.
        path: File they are from, for messages.
        rule: Rule that a text which is no such JSON breaks.
        place: Where in the file the text is, if it is not the whole file.

    Raises:
        StoreFormatError: If it is anything else.
    """
    try:
        return Node(parse_text(data, _LIMITS), path, key=place)
    except JsonProblem as problem:
        raise format_error(path, rule, place or "the top level", str(problem)) from None


def dump_json(value: object) -> bytes:
    """Writes a value the one way that equal values have equal bytes: sorted keys, no blanks, UTF-8, no newline."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
