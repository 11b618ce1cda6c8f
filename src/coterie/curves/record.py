"""Finished points in a file: an interrupted curve goes on, and a later one with more points measures only these.

One JSON object a line: first which models and texts they are of, then a line for each point.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie.curves.points import CurvePoint
from coterie.errors import InputError, OutputError, UsageError
from coterie.files.json_text import JsonLimits, parse_json
from coterie.files.regular import read_bounded

RECORD_SCHEMA_VERSION = 1
_FILE = 64 << 20
_LINE = JsonLimits(nbytes=1 << 20, depth=16, values=100_000)


class PointRecord:
    """The file.

    Args:
        path: Where it is, or is to be; None to keep points in memory alone.
        header: Of what they are points: texts and numbers only, equal if and only if points are comparable.

    Raises:
        UsageError: If it has the points of something else, or is no such file.
        InputError: If it cannot be read.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self._path = path
        self._header = {"schema_version": RECORD_SCHEMA_VERSION, **json.loads(json.dumps(header))}
        self._points: dict[str, CurvePoint] = {}
        if path is not None and path.exists():
            self._read(path)

    def get(self, key: str) -> CurvePoint | None:
        """A finished point; None if it is not there."""
        return self._points.get(key)

    def add(self, key: str, point: CurvePoint) -> None:
        """Keeps a point; it is on the disk when this returns.

        Raises:
            OutputError: If it cannot be written.
        """
        if self._path is not None:
            lines = [] if self._points else [self._header]
            self._append([*lines, {"key": key, "point": point.to_json()}], anew=not self._points)
        self._points[key] = point

    def _append(self, records: list[dict[str, Any]], *, anew: bool) -> None:
        assert self._path is not None, "there is a file"
        try:
            with open(self._path, "wb" if anew else "ab") as file:
                file.writelines(json.dumps(record).encode() + b"\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written: {error.strerror or error}.",
                advice="Points that are finished are kept there. Free space, or name another output.",
                path=self._path,
            ) from error

    def _read(self, path: Path) -> None:
        try:
            content = read_bounded(path, _FILE)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.", path=path) from error
        whole = content.rfind(b"\n") + 1
        try:
            header, *records = [parse_json(line, _LINE) for line in content[:whole].splitlines()] or [self._header]
            found = {str(record["key"]): CurvePoint.from_json(record["point"]) for record in records}
            differing = sorted(
                name for name in header.keys() | self._header.keys() if header.get(name) != self._header.get(name)
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path} is no record of a curve's points.",
                advice="Name another output; nothing was changed.",
                path=path,
            ) from error
        if differing:
            raise UsageError(
                f"{path} has the points of another curve: {', '.join(differing)} differ.",
                advice="Name another output, or remove this file to measure them anew.",
                path=path,
                differing=differing,
            )
        self._points = found
        if whole < len(content) and found:
            # A kill may have left half a line.
            os.truncate(path, whole)
