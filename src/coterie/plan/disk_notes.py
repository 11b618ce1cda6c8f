"""What was found out about each disk, kept in the user's cache directory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coterie.errors import OutputError, UsageError
from coterie.files.home import cache_folder
from coterie.files.replacing import replacing
from coterie.plan.disk import disk_identity
from coterie.plan.machine import SYSTEM_ROOT
from coterie.plan.queue_depth import ReadTuning, Trial, tune_reads
from coterie.spec import Extent

SCHEMA_VERSION = 1
"""Also changes when the trial does: older notes are then measured anew."""

_FILE = "disks.json"
FORCING_VARIABLE = "COTERIE_READS_AT_ONCE"
_MOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A tuning, and where it comes from.

    Attributes:
        tuning: How to read.
        date: When it was measured: UTC, ISO 8601.
        version: The version of Coterie that did.
    """

    tuning: ReadTuning
    date: str
    version: str


def forced_reads_at_once() -> int | None:
    """What the environment variable ``COTERIE_READS_AT_ONCE`` demands, if it is set.

    Raises:
        UsageError: If it is not a number from 1 to 64.
    """
    text = os.environ.get(FORCING_VARIABLE, "").strip()
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_AT_ONCE:
        raise UsageError(
            f"{FORCING_VARIABLE}={text!r} is not a number from 1 to {_MOST_AT_ONCE}.",
            advice="Unset it to have the number measured.",
            got=text,
        )
    return int(text)


class DiskNotes:
    """Tunings by disk and by size of record (to the nearest power of two).

    A file that is missing, damaged or of another version is as good as an empty one, and one that cannot be written
    is not: notes save time, they are never needed.

    Args:
        path: The file; default ``coterie/disks.json`` in the user's cache directory.
        root: Where ``/proc`` and ``/sys`` lie.
    """

    def __init__(self, path: Path | None = None, *, root: Path = SYSTEM_ROOT) -> None:
        self._path = cache_folder() / _FILE if path is None else path
        self._root = root

    def find(self, place: Path, record: int) -> Note | None:
        """What is known about the disk that ``place`` lies on, for records of that many bytes."""
        return _note(self._disks().get(self._identity(place), {}).get(_size_class(record)))

    def all_of(self, place: Path) -> list[Note]:
        """All that is known about the disk that ``place`` lies on, by size of record."""
        found = [_note(each) for each in self._disks().get(self._identity(place), {}).values()]
        return sorted((note for note in found if note is not None), key=lambda note: note.tuning.record)

    def tuned(
        self,
        place: Path,
        record: int,
        extents: Sequence[Extent],
        *,
        memory: int,
        version: str,
        anew: bool = False,
    ) -> Note | None:
        """What is known, or is found out and noted now.

        Args:
            place: A file or directory on the disk.
            record: Bytes of a record.
            extents: Places of records to read.
            memory: Bytes that may be taken for buffers meanwhile.
            version: Coterie's.
            anew: Measure even where something is known.

        Returns:
            None where it cannot be measured, or reading failed: whoever reads for a reason meets the error again.
        """
        known = None if anew else self.find(place, record)
        if known is not None:
            return known
        try:
            tuning = tune_reads(extents, memory=memory)
        except OSError:
            return None
        if tuning is None:
            return None
        note = Note(tuning=tuning, date=datetime.now(UTC).isoformat(timespec="seconds"), version=version)
        self._keep(place, note)
        return note

    def _keep(self, place: Path, note: Note) -> None:
        disks = self._disks()
        disks.setdefault(self._identity(place), {})[_size_class(note.tuning.record)] = {
            "date": note.date,
            "version": note.version,
            **asdict(note.tuning),
        }
        with suppress(OSError, OutputError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as partial, partial.open("w", encoding="utf-8") as file:
                json.dump({"schema_version": SCHEMA_VERSION, "disks": disks}, file, indent=1, sort_keys=True)
                file.write("\n")

    def _disks(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            return {}
        disks = content.get("disks")
        if not isinstance(disks, dict):
            return {}
        return {name: notes for name, notes in disks.items() if isinstance(notes, dict)}

    def _identity(self, place: Path) -> str:
        return disk_identity(place, root=self._root)


def _size_class(record: int) -> str:
    return str(1 << round(math.log2(max(1, record))))


def _note(value: object) -> Note | None:
    """The note that a file holds, or None if it is none."""
    if not isinstance(value, dict):
        return None
    numbers = [value.get(name) for name in ("at_once", "parts", "record")]
    texts = [value.get(name) for name in ("date", "version")]
    if not all(isinstance(each, int) and each >= 1 for each in numbers) or not all(isinstance(t, str) for t in texts):
        return None
    at_once, parts, record = value["at_once"], value["parts"], value["record"]
    if at_once > _MOST_AT_ONCE or parts > at_once:
        return None
    try:
        trials = tuple(
            Trial(
                at_once=int(each["at_once"]),
                parts=int(each["parts"]),
                lone=bool(each["lone"]),
                bytes_per_second=float(each["bytes_per_second"]),
            )
            for each in value.get("trials", ())
        )
    except (TypeError, ValueError, KeyError):
        return None
    tuning = ReadTuning(at_once=at_once, parts=parts, record=record, trials=trials)
    return Note(tuning=tuning, date=value["date"], version=value["version"])
