"""What a benchmark has measured so far, in a file from the moment it is there: one that is interrupted goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """Figures under keys.

    Args:
        path: The file, a line of JSON for each.
        resume: Whether to keep what an interrupted run has left in it.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self._kept: list[tuple[dict[str, Any], Any]] = []
        if not resume:
            path.unlink(missing_ok=True)
        elif path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self._kept.append((entry["key"], entry["value"]))

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Any]]:
        """Keys and figures, the oldest first."""
        return iter(self._kept)

    def of(self, key: dict[str, Any]) -> Any:
        """What was measured under a key; None if nothing was."""
        key = json.loads(json.dumps(key))
        return next((value for known, value in self._kept if known == key), None)

    def keep(self, key: dict[str, Any], value: Any) -> None:
        """Keeps a figure.

        Args:
            key: What it is of, settings included: under others it is another figure.
            value: It, as JSON can have it.
        """
        line = json.dumps({"key": key, "value": value})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._kept.append((json.loads(line)["key"], value))
