"""Byte counts as people write them. "8GB" and "8GiB" differ."""

from __future__ import annotations

import re
from collections.abc import Iterable

from coterie.errors import UsageError

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
"""A letter alone is a binary unit, as Docker and systemd have it."""
_LEAST = 2**16
"""A text without a unit is a number of bytes from here on; below, a unit was forgotten."""
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int, *, what: str = "size") -> int:
    """Reads a byte count such as ``"8GiB"``, ``"500 MB"``, ``"8g"`` (binary) or ``1073741824``.

    Args:
        text: The text, or a number of bytes.
        what: What the size is for, used in the error message.

    Raises:
        UsageError: If it is not a positive size with a known unit, or a small number whose unit was forgotten.
    """
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise UsageError(f"The {what} must be a number of bytes or a text such as '8GiB', not {text!r}.")
    if isinstance(text, int):
        value: float = text
    else:
        match = _PATTERN.fullmatch(text)
        unit = match.group(2).upper() if match else ""
        if match is None or unit not in _UNITS:
            raise UsageError(
                f"The {what} {text!r} is not a size.", advice="Write it like '8GiB' (2**30), '8GB' (10**9) or '500MB'."
            )
        value = float(match.group(1)) * _UNITS[unit]
        if not unit and 0 < value < _LEAST:
            number = match.group(1)
            meant = f"{number}{'GiB' if value < 2**10 else 'MiB'}"
            raise UsageError(
                f"The {what} {number!r} would be {number} bytes.", advice=f"Did you mean {meant!r}? Write the unit."
            )
    if value <= 0:
        raise UsageError(f"The {what} must be positive, not {text!r}.")
    return int(value)


def parse_rate(text: str | int) -> int:
    """Reads bytes in a second, such as ``"20MB/s"`` or ``"20MB"``.

    Raises:
        UsageError: If it is none.
    """
    if isinstance(text, str):
        text = text.strip().removesuffix("/s").removesuffix("ps")
    return parse_bytes(text, what="rate")


def share_nbytes(wanted: str | int, total: int, name: str) -> int:
    """Bytes, or a share of ``total`` of them, such as ``"25%"``.

    Args:
        wanted: Either.
        total: What 100 % are.
        name: Of the setting, for the message.

    Raises:
        UsageError: If it is neither.
    """
    if isinstance(wanted, str) and wanted.strip().endswith("%"):
        text = wanted.strip()[:-1]
        try:
            share = float(text) / 100
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            raise UsageError(f"{name}={wanted!r} is not a share.", advice="Write it like '25%' or '2GiB'.", got=text)
        return int(share * total)
    return parse_bytes(wanted, what=name.replace("_", " "))


def format_bytes(count: int) -> str:
    """Writes a byte count for people, in binary units: ``"1.50 GiB"``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.3g} PiB"


def parse_ranges(text: str, *, what: str, limit: int | None = None) -> tuple[int, ...]:
    """Reads a selection such as ``"0-7,12"`` into sorted distinct numbers.

    Args:
        text: Comma-separated numbers and inclusive ranges.
        what: What is selected (``"experts"``, ``"layers"``), used in messages.
        limit: If given, every number must be below it.

    Raises:
        UsageError: On anything else.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UsageError(f"{part.strip()!r} is not a selection of {what}.", advice="Write it like '0-7,12'.")
        first = int(match.group(1))
        last = int(match.group(2)) if match.group(2) is not None else first
        if last < first:
            raise UsageError(f"The range {part.strip()!r} of {what} runs backwards.", advice=f"Write '{last}-{first}'.")
        if limit is not None and last >= limit:
            raise UsageError(f"{what} {last} does not exist: the model has {what} 0 to {limit - 1}.", limit=limit)
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def format_ranges(numbers: Iterable[int]) -> str:
    """Writes numbers for people: ``"0 to 7, 12"``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first} to {last}" if last > first else f"{first}" for first, last in runs)
