"""The list of what was read over the network for a store that is not finished: a line per range, with its digest.

A store may be made by several runs, each of which is stopped somewhere. So the bytes that an earlier run has used are
known by their digests, and a later one can say whether they were those that the Hub's checksum stands for. A torn last
line is that of a run that was killed; nothing is built on what it would have said.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import StoreError
from coterie.files.regular import read_bounded

_LIMIT = 256 * 2**20
_LINE = re.compile(rb"(used|checked|doubted|dropped) (\d{1,18}) (\d{1,18}) ([0-9a-f]{32}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedRange:
    """A range of a file whose bytes went into the store.

    Attributes:
        offset: Its first byte.
        nbytes: How many.
        digest: See :func:`~coterie.records.remote.range_reader.digest_of`.
    """

    offset: int
    nbytes: int
    digest: str

    @property
    def end(self) -> int:
        """The byte after the last one."""
        return self.offset + self.nbytes


@dataclass(slots=True)
class Known:
    """What earlier runs have noted of a file.

    Attributes:
        used: The ranges that went into the store.
        checked: Whether the whole file passed by, and was the right one.
    """

    used: dict[tuple[int, int], UsedRange]
    checked: bool = False


class ReceivedList:
    """The list, opened for adding to it. Safe to use from several threads.

    Args:
        path: The file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, Known] = {}
        found = list(_lines(path))
        for line, _ in found:
            self._take(line)
        end = found[-1][1] if found else 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            self._fd = os.open(path, flags, 0o666)
            os.ftruncate(self._fd, end)
            os.lseek(self._fd, end, os.SEEK_SET)
        except OSError as error:
            raise _unusable(path, error) from error

    def known(self, sha256: str) -> Known:
        """What is noted of the file with this content."""
        return self._known.setdefault(sha256, Known({}))

    def used(self, sha256: str, one: UsedRange) -> None:
        """Notes a range that goes into the store."""
        self._append(f"used {one.offset} {one.nbytes} {one.digest} {sha256}")

    def checked(self, sha256: str) -> None:
        """Notes that a whole file was the right one."""
        self._append(f"checked 0 0 {'0' * 32} {sha256}")

    def doubted(self, sha256: str) -> None:
        """Notes that bytes of it came again after it was checked, which have to be compared, too."""
        self._append(f"doubted 0 0 {'0' * 32} {sha256}")

    def dropped(self, sha256: str) -> None:
        """Notes that nothing of a file is in the store any more."""
        self._append(f"dropped 0 0 {'0' * 32} {sha256}")

    def close(self) -> None:
        """Closes the file; it stays on the disk."""
        os.close(self._fd)

    def _append(self, text: str) -> None:
        try:
            with self._lock:
                os.write(self._fd, text.encode() + b"\n")
        except OSError as error:
            raise _unusable(self._path, error) from error

    def _take(self, line: re.Match[bytes]) -> None:
        known = self.known(line[5].decode())
        offset, nbytes = int(line[2]), int(line[3])
        if line[1] == b"used":
            known.used[offset, nbytes] = UsedRange(offset=offset, nbytes=nbytes, digest=line[4].decode())
        elif line[1] in (b"checked", b"doubted"):
            known.checked = line[1] == b"checked"
        else:
            self._known[line[5].decode()] = Known({})


def _lines(path: Path) -> Iterator[tuple[re.Match[bytes], int]]:
    """The lines up to the first that is none, each with the offset of its end."""
    try:
        data = read_bounded(path, _LIMIT, links=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(path, error) from error
    end = 0
    for line in data.splitlines(keepends=True):
        found = _LINE.fullmatch(line.removesuffix(b"\n"))
        if found is None or not line.endswith(b"\n"):
            return
        end += len(line)
        yield found, end


def _unusable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path} cannot be used: {error.strerror or error}.", advice="Check what it is, and the disk.", path=path
    )
