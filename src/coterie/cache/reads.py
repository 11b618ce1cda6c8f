"""Brings a record from its source into memory, or says exactly why it cannot."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

import xxhash

from coterie.cache.files import HAS_PREADV, FileCache
from coterie.errors import ChecksumError, CoterieError, ReadError
from coterie.spec import RECORD_ALIGNMENT, ExpertKey, ExpertSource, Extent, RecordLayout

_REPAIR = "Verify the file; copy or extract it again if it is damaged."


class RecordReader:
    """Fills records from an :class:`~coterie.spec.ExpertSource`. Safe to use from several threads.

    One aligned extent is read with O_DIRECT where the filesystem has it. Anything else is read through the page cache
    and dropped from it. Records without extents are decoded by the source.

    Args:
        source: Where the bytes are.
        verify: Compare every record that has a checksum with it.
        direct: Whether to try O_DIRECT.
        positioned: Whether to use preadv (else seek and readinto).
        max_files: Files kept open.
    """

    def __init__(
        self,
        source: ExpertSource,
        *,
        verify: bool = False,
        direct: bool = True,
        positioned: bool = HAS_PREADV,
        max_files: int = 64,
    ) -> None:
        self._source = source
        self._verify = verify
        self._files = FileCache(limit=max_files, direct=direct, positioned=positioned)

    def read(self, key: ExpertKey, layout: RecordLayout, record: memoryview) -> int:
        """Fills ``record`` (at least ``layout.nbytes`` bytes, on a 4096-byte address) and returns the bytes read.

        Bytes outside the extents (outside the fields, where the source decodes) are zero afterwards.

        Raises:
            ReadError: With facts ``key``, ``path``, ``offset``, ``expected`` and ``got`` (bytes).
            ChecksumError: With ``verify``, if the record differs from its checksum.
        """
        extents = self._source.extents(key)
        if extents is None:
            nbytes = self._decode(key, layout, record)
        else:
            _zero_gaps(record, ((extent.at, extent.nbytes) for extent in extents))
            for extent in extents:
                self._read_extent(key, layout, extent, record)
            nbytes = sum(extent.nbytes for extent in extents)
        if self._verify:
            self._check(key, extents, record[: layout.nbytes])
        return nbytes

    def close(self) -> None:
        """Closes the open files; a later read is an error."""
        self._files.close()

    def _decode(self, key: ExpertKey, layout: RecordLayout, record: memoryview) -> int:
        _zero_gaps(record, ((field.offset, field.nbytes) for field in layout.fields))
        try:
            return self._source.read_into(key, record[: layout.nbytes])
        except CoterieError:
            raise
        except Exception as error:
            raise ReadError(f"Expert {key} could not be decoded: {error!r}.", advice=_REPAIR, key=key) from error

    def _read_extent(self, key: ExpertKey, layout: RecordLayout, extent: Extent, record: memoryview) -> None:
        if extent.at < 0 or extent.nbytes < 0 or extent.at + extent.nbytes > layout.nbytes:
            raise _error(key, extent, 0, f"its place in the record, {extent.at}, is outside {layout.nbytes} bytes")
        target = record[extent.at : extent.at + extent.nbytes]
        done = self._read_direct(key, extent, target) if self._is_direct(extent) else 0
        if done == extent.nbytes:
            return
        try:
            with self._files.reading(extent.path) as file:
                while done < extent.nbytes:
                    count = file.read_at(target[done:], extent.offset + done)
                    if count == 0:
                        raise _error(key, extent, done, f"the file ends at {file.size()}")
                    done += count
                file.drop(extent.offset, extent.nbytes)
        except OSError as error:
            raise _error(key, extent, done, str(error)) from error

    def _is_direct(self, extent: Extent) -> bool:
        aligned = not (extent.offset % RECORD_ALIGNMENT or extent.nbytes % RECORD_ALIGNMENT)
        return aligned and extent.at % RECORD_ALIGNMENT == 0 and self._files.may_be_direct(extent.path)

    def _read_direct(self, key: ExpertKey, extent: Extent, target: memoryview) -> int:
        """Reads past the page cache as far as that works; the caller reads the rest, and meets the error, if any."""
        done = 0
        try:
            with self._files.reading(extent.path, direct=True) as file:
                while done < extent.nbytes:
                    count = file.read_at(target[done:], extent.offset + done)
                    done += count
                    if count == 0 or done % RECORD_ALIGNMENT:
                        break
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise _error(key, extent, done, str(error)) from error
            self._files.refuse_direct(extent.path)
        return done

    def _check(self, key: ExpertKey, extents: tuple[Extent, ...] | None, record: memoryview) -> None:
        expected = self._source.checksum(key)
        if expected is None:
            return
        got = xxhash.xxh3_128(record).hexdigest()
        if got == expected:
            return
        path: Path | None = extents[0].path if extents else None
        offset = extents[0].offset if extents else None
        place = f" in {path} at offset {offset}" if extents else ""
        raise ChecksumError(
            f"The record of expert {key}{place} differs from its checksum: expected {expected}, got {got}.",
            advice="The file is damaged: copy or extract it again.",
            key=key,
            path=path,
            offset=offset,
            expected=expected,
            got=got,
        )


def _zero_gaps(record: memoryview, filled: Iterable[tuple[int, int]]) -> None:
    end = 0
    for start, nbytes in sorted(filled):
        if start > end:
            record[end:start] = bytes(start - end)
        end = max(end, start + nbytes)
    if end < len(record):
        record[end:] = bytes(len(record) - end)


def _error(key: ExpertKey, extent: Extent, got: int, why: str) -> ReadError:
    return ReadError(
        f"Expert {key} could not be read: {extent.path} at offset {extent.offset}: "
        f"expected {extent.nbytes} bytes, got {got}: {why}.",
        advice=_REPAIR,
        key=key,
        path=extent.path,
        offset=extent.offset,
        expected=extent.nbytes,
        got=got,
    )
