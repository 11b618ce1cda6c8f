"""What an unfinished writer has finished so far, in a form that a crash in the middle of an append cannot spoil.

One line per entry: 16 hex digits of xxh3-64, a blank, canonical JSON. Reading stops at the first line that does not
match its checksum; that can only be the one being appended when the process or the machine went down.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from coterie.store import names
from coterie.store.disk import Disk, explained
from coterie.store.strict_json import dump_json


@dataclass(frozen=True, kw_only=True)
class JournalHeader:
    """What is being written.

    Attributes:
        base: Digest of the manifest that is being grown, empty for a new store.
        parts: Digest of each part of the plan.
        files: Side files of the plan.
    """

    base: str
    parts: dict[str, str]
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FinishedFile:
    """A file that is whole and durable.

    Attributes:
        file: Relative name.
        nbytes: Size.
        checksums: xxh3-128 (hex) of each record in order for expert files, else of the whole file.
        layout: Digest of the header for dense shards, else empty: tells whether it is still the file wanted.
    """

    file: str
    nbytes: int
    checksums: tuple[str, ...]
    layout: str = ""


class Journal:
    """The journal of one writer. Appending is safe from several threads and durable when it returns."""

    def __init__(self, disk: Disk, header: JournalHeader, finished: dict[str, FinishedFile], end: int) -> None:
        self.header = header
        self._disk = disk
        self._path = disk.path(names.JOURNAL)
        self._finished = finished
        self._end = end
        self._lock = threading.Lock()
        self._fd: int | None = None

    @classmethod
    def create(cls, disk: Disk, header: JournalHeader) -> Journal:
        """Starts a journal, replacing an older one."""
        line = _line({"base": header.base, "parts": header.parts, "files": list(header.files)})
        disk.write(names.JOURNAL, line)
        return cls(disk, header, {}, len(line))

    @classmethod
    def resume(cls, disk: Disk) -> Journal | None:
        """Goes on with the journal that is there; None if there is none or its first line is unreadable."""
        found = read_journal(disk.path(names.JOURNAL))
        return None if found is None else cls(disk, *found)

    def finished(self, name: str) -> FinishedFile | None:
        """The entry of a finished file, if the file is still there in its size."""
        entry = self._finished.get(name)
        if entry is None:
            return None
        try:
            size = self._disk.path(name).lstat().st_size
        except OSError:
            return None
        return entry if size == entry.nbytes else None

    def append(self, entry: FinishedFile) -> None:
        """Records that a file is finished."""
        line = _line({"file": entry.file, "bytes": entry.nbytes, "xxh3": list(entry.checksums), "layout": entry.layout})
        with self._lock, explained(self._path, len(line)):
            if self._fd is None:
                self._fd = self._disk.calls.open(self._path)
            done = 0
            while done < len(line):
                done += self._disk.calls.write(self._fd, memoryview(line)[done:], self._end + done)
            self._disk.calls.sync(self._fd)
            # Only now: an append after a failed one overwrites the torn line.
            self._end += len(line)
            self._finished[entry.file] = entry

    def close(self) -> None:
        """Closes the file; the journal stays on the disk."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _line(value: dict[str, object]) -> bytes:
    data = dump_json(value)
    return str(xxhash.xxh3_64_hexdigest(data)).encode() + b" " + data + b"\n"


def read_journal(path: Path) -> tuple[JournalHeader, dict[str, FinishedFile], int] | None:
    """Header, finished files by name, and the end in bytes of what is readable; None if there is no such journal."""
    header: JournalHeader | None = None
    finished: dict[str, FinishedFile] = {}
    end = 0
    with explained(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    for line in data.splitlines(keepends=True):
        value = _entry(line)
        if value is None:
            break
        if header is None:
            header = JournalHeader(base=value["base"], parts=value["parts"], files=tuple(value["files"]))
        else:
            entry = FinishedFile(
                file=value["file"], nbytes=value["bytes"], checksums=tuple(value["xxh3"]), layout=value["layout"]
            )
            finished[entry.file] = entry
        end += len(line)
    return None if header is None else (header, finished, end)


def _entry(line: bytes) -> dict[str, Any] | None:
    checksum, _, data = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != str(xxhash.xxh3_64_hexdigest(data)).encode():
        return None
    value: dict[str, Any] = json.loads(data)
    return value
