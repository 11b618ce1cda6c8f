"""JSON that a model wrote, of which no more is passed on than a client can be sent."""

from __future__ import annotations

import json
from typing import Any


def read_written(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: If it is none, holds numbers that JSON does not have, halves of characters, or is nested too deep.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def written(value: Any) -> str:
    """A value as JSON."""
    return json.dumps(value, ensure_ascii=False)
