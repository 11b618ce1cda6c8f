"""What an unfinished writer has finished so far, in a form that a crash in the middle of an append cannot spoil.

One line per entry: 16 hex digits of xxh3-64, a blank, canonical JSON. Reading stops at the first line that does not
match its checksum; that can only be the one being appended when the process or the machine went down.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import xxhash

from coterie.errors import StoreError, StoreFormatError
from coterie.files.regular import read_bounded
from coterie.store import names
from coterie.store.disk import Disk, explained
from coterie.store.manifest import RecordErrors
from coterie.store.manifest_json import MAX_BANKS, MAX_EXPERTS, MAX_FIELDS, MAX_MANIFEST_BYTES
from coterie.store.strict_json import Node, dump_json, parse_json

MAX_JOURNAL_BYTES = 2 * MAX_MANIFEST_BYTES
"""Its lines say less than the manifest that they end as; a larger one is not of a writer."""


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
        errors: Those of each record in order, where codes were chosen by calibration; else empty.
    """

    file: str
    nbytes: int
    checksums: tuple[str, ...]
    layout: str = ""
    errors: tuple[RecordErrors | None, ...] = ()


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
        value: dict[str, object] = {
            "file": entry.file,
            "bytes": entry.nbytes,
            "xxh3": list(entry.checksums),
            "layout": entry.layout,
        }
        if entry.errors:
            value["errors"] = [
                None if one is None else [one.output, one.nearest, dict(one.weights)] for one in entry.errors
            ]
        line = _line(value)
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
    try:
        data = read_bounded(path, MAX_JOURNAL_BYTES, links=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}.", advice="Check what it is, and the disk.", path=path
        ) from error
    for line in data.splitlines(keepends=True):
        node = _entry(line, path)
        if node is None:
            break
        try:
            if header is None:
                header = _header(node)
            else:
                entry = _finished_file(node)
                finished[entry.file] = entry
        except StoreFormatError:
            break  # its checksum is right, but no writer of this format wrote it
        end += len(line)
    return None if header is None else (header, finished, end)


def _entry(line: bytes, path: Path) -> Node | None:
    checksum, _, data = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != str(xxhash.xxh3_64_hexdigest(data)).encode():
        return None
    try:
        return parse_json(data, path, rule="R29")
    except StoreFormatError:
        return None


def _header(node: Node) -> JournalHeader:
    value = node.fields("base", "parts", "files")
    return JournalHeader(
        base=value["base"].text(empty=True),
        parts={name: item.text() for name, item in value["parts"].members(limit=2 * MAX_BANKS)},
        files=tuple(item.text() for item in value["files"].items(limit=4096)),
    )


def _finished_file(node: Node) -> FinishedFile:
    value = node.fields("file", "bytes", "xxh3", "layout", optional=("errors",))
    return FinishedFile(
        file=value["file"].text(),
        nbytes=value["bytes"].integer(0),
        checksums=tuple(item.text() for item in value["xxh3"].items(limit=MAX_EXPERTS)),
        layout=value["layout"].text(empty=True),
        errors=tuple(map(_errors, value["errors"].items(limit=MAX_EXPERTS))) if "errors" in value else (),
    )


def _errors(node: Node) -> RecordErrors | None:
    if node.is_null:
        return None
    output, nearest, weights = node.items(limit=3)
    return RecordErrors(output=output.integer(0), nearest=nearest.integer(0), weights=_weights(weights))


def _weights(node: Node) -> dict[str, int]:
    return {name: item.integer(0) for name, item in node.members(limit=MAX_FIELDS)}
