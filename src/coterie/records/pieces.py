"""A piece: what one system call brings from a file into a record."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from coterie.errors import ReadError
from coterie.records.files import FileCache, SharedFile
from coterie.spec import RECORD_ALIGNMENT, ExpertKey, Extent, round_up

REPAIR = "Verify the file; copy or extract it again if it is damaged."


class Piece:
    """A run of bytes, aimed at its place in memory; its file is open, so that running it is one call.

    Args:
        files: Where files are kept open.
        key: The expert, for messages.
        extent: Which bytes.
        target: Where they go: as many bytes of memory.

    Raises:
        ReadError: If the file cannot be opened.
    """

    __slots__ = ("_extent", "_file", "_files", "_key", "_target")

    def __init__(self, files: FileCache, key: ExpertKey, extent: Extent, target: memoryview) -> None:
        self._files = files
        self._key = key
        self._extent = extent
        self._target = target
        self._file = self._open_direct() if is_aligned(extent) and files.may_be_direct(extent.path) else None

    def run(self) -> None:
        """Reads the bytes.

        Past the page cache as far as that works; the rest, and the error if there is one, by way of the page cache.

        Raises:
            ReadError: With facts ``key``, ``path``, ``offset``, ``expected`` and ``got`` (bytes).
        """
        extent = self._extent
        done = 0
        if self._file is not None:
            try:
                done = self._file.file.read_at(self._target, extent.offset)
                if done == extent.nbytes:
                    return
                done = self._go_on(done)
            except OSError as error:
                self._refused(error, done)
        if done < extent.nbytes:
            self._read_buffered(done)

    def close(self) -> None:
        """Gives the file back. Harmless when repeated."""
        if self._file is not None:
            self._files.give_back(self._file)
            self._file = None

    def _open_direct(self) -> SharedFile | None:
        try:
            return self._files.take(self._extent.path, direct=True, stamp=self._extent.stamp)
        except OSError as error:
            self._refused(error, 0)
            return None

    def _refused(self, error: OSError, done: int) -> None:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise read_error(self._key, self._extent, done, str(error)) from error
        self._files.refuse_direct(self._extent.path)

    def _go_on(self, done: int) -> int:
        """After a short read: as long as each goes on at an address that direct reads can start from."""
        assert self._file is not None
        extent, count = self._extent, done
        while count and done < extent.nbytes and not done % RECORD_ALIGNMENT:
            count = self._file.file.read_at(self._target[done:], extent.offset + done)
            done += count
        return done

    def _read_buffered(self, done: int) -> None:
        extent = self._extent
        try:
            with self._files.reading(extent.path, stamp=extent.stamp) as file:
                while done < extent.nbytes:
                    count = file.read_at(self._target[done:], extent.offset + done)
                    if count == 0:
                        raise read_error(self._key, extent, done, f"the file ends at {file.size()}")
                    done += count
                file.drop(extent.offset, extent.nbytes)
        except OSError as error:
            raise read_error(self._key, extent, done, str(error)) from error


def is_aligned(extent: Extent) -> bool:
    """Whether an extent can be read past the page cache, where the filesystem can."""
    return not (extent.offset % RECORD_ALIGNMENT or extent.nbytes % RECORD_ALIGNMENT or extent.at % RECORD_ALIGNMENT)


def split(extent: Extent, longest: int | None) -> Iterator[Extent]:
    """An aligned extent as runs of about equal length, none longer than ``longest`` bytes rounded up to 4096."""
    if longest is None or extent.nbytes <= longest or not is_aligned(extent):
        yield extent
        return
    count = -(-extent.nbytes // longest)
    step = round_up(-(-extent.nbytes // count), RECORD_ALIGNMENT)
    for start in range(0, extent.nbytes, step):
        yield Extent(
            path=extent.path,
            offset=extent.offset + start,
            nbytes=min(step, extent.nbytes - start),
            at=extent.at + start,
            stamp=extent.stamp,
        )


def read_error(key: ExpertKey, extent: Extent, got: int, why: str) -> ReadError:
    """The error for an extent of which only ``got`` bytes could be read."""
    return ReadError(
        f"Expert {key} could not be read: {extent.path} at offset {extent.offset}: "
        f"expected {extent.nbytes} bytes, got {got}: {why}.",
        advice=REPAIR,
        key=key,
        path=extent.path,
        offset=extent.offset,
        expected=extent.nbytes,
        got=got,
    )
