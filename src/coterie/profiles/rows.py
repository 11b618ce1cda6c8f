"""Rows of the tables, with every value checked against its column: a file may come from anywhere.

SQLite keeps whatever is put into a column, of any type and size, and a file's own definitions of its tables may allow
anything. All rows are read through :func:`checked_rows`, so that what comes after may rely on types and ranges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlalchemy import BigInteger, Boolean, Connection, Double, Integer, LargeBinary, Select, String
from sqlalchemy.types import TypeEngine

from coterie.errors import ProfileFormatError
from coterie.profiles.facts import MAX_COUNT, MAX_SUM

_MAX_INTEGER = (1 << 31) - 1
"""What a column of PostgreSQL's type integer holds."""
_SHOWN = 40
"""Characters of a strange value that a message shows."""

_Check = Callable[[Any], bool]


def checked_rows(connection: Connection, query: Select[Any], *, at_once: int | None = None) -> Iterator[Any]:
    """Rows of a query.

    Args:
        connection: Open until the last one was taken.
        query: Of columns of :mod:`coterie.profiles.tables`.
        at_once: Rows in memory at a time; default: all.

    Raises:
        ProfileFormatError: If a value is not what its column holds.
    """
    checks = [(str(column.key), _check_of(column.type)) for column in query.selected_columns]
    options = {} if at_once is None else {"yield_per": at_once}
    for row in _decoded(connection.execute(query, execution_options=options)):
        for (name, is_right), value in zip(checks, row, strict=True):
            if not is_right(value):
                shown = type(value).__name__ if isinstance(value, bytes) else repr(value)[:_SHOWN]
                raise _damaged(f"{shown} is no value of the column {name}")
        yield row


def _decoded(result: Iterable[Any]) -> Iterator[Any]:
    """Rows as the driver makes them; drivers stumble over values that a column cannot have."""
    rows = iter(result)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except (TypeError, ValueError, OverflowError, MemoryError) as error:
            raise _damaged(f"a value is of another kind than its column ({type(error).__name__})") from error
        yield row


def _damaged(problem: str) -> ProfileFormatError:
    return ProfileFormatError(
        f"The profile is damaged: {problem}.", advice="Merge an intact copy into a new file, or record again."
    )


def _check_of(kind: TypeEngine[Any]) -> _Check:
    if isinstance(kind, Boolean):
        return lambda value: isinstance(value, bool)
    if isinstance(kind, Integer):
        most = MAX_COUNT if isinstance(kind, BigInteger) else _MAX_INTEGER
        return lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
    if isinstance(kind, Double):
        return lambda value: isinstance(value, float) and math.isfinite(value) and abs(value) <= MAX_SUM
    if isinstance(kind, String):
        longest = kind.length
        return lambda value: isinstance(value, str) and (longest is None or len(value) <= longest)
    assert isinstance(kind, LargeBinary), kind
    return lambda value: isinstance(value, bytes)
