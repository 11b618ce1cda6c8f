"""The one reader of JSON from outside: strict about what JSON is, and bounded before anything is built of it.

Sizes are known before a text is parsed: bytes, nesting, and an upper bound of the number of values, which is what
parsing takes memory for (up to some hundred bytes for a value of two).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import CheckpointFileError, CoterieError
from coterie.files.regular import read_bounded


class JsonProblem(ValueError):
    """A text is not JSON, or beyond a limit; the message says what and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLimits:
    """What a text may ask for.

    Attributes:
        nbytes: Bytes of the text.
        depth: Nesting of arrays and objects.
        values: Values of all kinds, as an upper bound: commas and opening brackets, also those within strings.
        digits: Characters of an integer.
        floats: Whether numbers may have a fraction or an exponent, or be ``NaN`` or ``Infinity``, which some
            configurations contain.
    """

    nbytes: int = 16 * 2**20
    depth: int = 64
    values: int = 1_000_000
    digits: int = 20
    floats: bool = True


CONFIGURATION = JsonLimits()
"""For configurations of all kinds."""

_NESTING = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def parse_json(data: bytes, limits: JsonLimits = CONFIGURATION) -> Any:
    """Parses one JSON text: UTF-8 without byte order mark, with unique keys, within limits.

    Raises:
        JsonProblem: If it is anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            duplicate, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise JsonProblem(f"the key {duplicate[:80]!r} occurs twice in one object")
        return result

    def real(text: str) -> float:
        if not limits.floats:
            raise JsonProblem(f"the number {text[:40]!r} is not an integer")
        return float(text)

    def integer(text: str) -> int:
        if len(text) > limits.digits:
            raise JsonProblem(f"an integer has more than {limits.digits} characters")
        return int(text)

    _check_size(data, limits)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonProblem(f"byte {error.start} is not UTF-8") from None
    if _depth(text, limits.depth) > limits.depth:
        raise JsonProblem(f"arrays and objects are nested deeper than {limits.depth}")
    try:
        return json.loads(text, object_pairs_hook=unique, parse_float=real, parse_constant=real, parse_int=integer)
    except JsonProblem:
        raise
    except ValueError as error:
        raise JsonProblem(f"not JSON: {error}") from None


def read_json_object(
    path: Path,
    *,
    limits: JsonLimits = CONFIGURATION,
    error: type[CoterieError] = CheckpointFileError,
    advice: str = "Download it again.",
) -> dict[str, Any]:
    """Reads a file that has to be one JSON object.

    Args:
        path: The file.
        limits: What it may ask for.
        error: What to raise, with ``path`` as a fact.
        advice: What to do about a file that is damaged.

    Raises:
        FileNotFoundError: If there is none; whoever asks knows what that means.
        CoterieError: Of the class asked for: if the file cannot be read, is not JSON, or is no object.
    """
    try:
        value = parse_json(read_bounded(path, limits.nbytes), limits)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}.", advice="Check what it is.", path=path) from problem
    except JsonProblem as problem:
        raise error(f"{path} is not valid JSON: {problem}.", advice=advice, path=path) from problem
    if not isinstance(value, dict):
        raise error(f"{path} is not a JSON object.", advice=advice, path=path)
    return value


def _check_size(data: bytes, limits: JsonLimits) -> None:
    if len(data) > limits.nbytes:
        raise JsonProblem(f"more than the limit of {limits.nbytes:,} bytes")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > limits.values:
        raise JsonProblem(f"more than the limit of {limits.values:,} values")


def _depth(text: str, limit: int) -> int:
    """Deepest nesting of brackets outside strings, not followed beyond the limit; an unclosed string ends the text."""
    depth = deepest = 0
    for match in _NESTING.finditer(text):
        token = match.group()
        if token in "[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > limit:
                return deepest
        elif token in "]}":
            depth -= 1
    return deepest
