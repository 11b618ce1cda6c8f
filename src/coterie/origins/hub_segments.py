"""Files of experts of a store on the Hub, read by ranges: an expert costs its own bytes, once."""

from __future__ import annotations

import logging
from contextlib import closing

import xxhash

from coterie.checkpoint.hub import Repository
from coterie.checkpoint.hub.checksums import checksum_of
from coterie.errors import ChecksumError
from coterie.files.sparse import SparseFile
from coterie.records import LocalFile, read_range
from coterie.records.remote import RangeReader
from coterie.spec import ByteSource
from coterie.store import Record, Segment

_log = logging.getLogger("coterie.hub")


class HubSegment:
    """A file of experts of which this machine has those that were asked for. Safe to use from several threads.

    Args:
        repository: The repository.
        segment: What the manifest says about the file.
        reader: Reads ranges of it; None where nothing may be asked of the Hub.
    """

    def __init__(self, repository: Repository, segment: Segment, reader: RangeReader | None) -> None:
        self._repository = repository
        self._segment = segment
        self._remote = None if reader is None else repository.remote_file(segment.file, reader)
        self.sparse = sparse_file(repository, segment)
        self._full = False

    def here(self, record: Record) -> ByteSource | None:
        """Where this machine has a record, in the place that it has in the whole file; None if it has not."""
        if not self.sparse.has(record.offset):
            self.sparse.look()
        return LocalFile(self.sparse.path) if self.sparse.is_sure(record.offset) else None

    def read_into(self, record: Record, buffer: memoryview) -> int:
        """Fills the memory of a record, fetching it if it is not here; returns the bytes that came over the network.

        Raises:
            ChecksumError: If the record was published damaged.
            CheckpointFileError: If it cannot be had.
            OSError: If what is here cannot be read.
        """
        if self.sparse.has(record.offset):
            count = read_range(LocalFile(self.sparse.path), record.offset, buffer)
            if count == record.nbytes and _is_right(buffer, record):
                self.sparse.confirm(record.offset)
                return 0
            self.sparse.forget(record.offset)
        came = self._fetch(record, buffer)
        if not self._full:
            try:
                self.sparse.keep(record.offset, buffer)
            except OSError as error:
                self._full = True
                _log.warning(
                    "%s: what is fetched cannot be kept in the Hub's cache (%s): it is fetched again when it is needed "
                    "again.",
                    self._repository.repo_id,
                    error.strerror or error,
                )
        return came

    def close(self) -> None:
        """Makes what came durable."""
        self.sparse.close()

    def complete(self) -> None:
        """Fetches what is missing, and makes it the whole file that every client of the Hub finds in the cache.

        Raises:
            ChecksumError, CheckpointFileError, OSError: As :meth:`read_into`.
        """
        buffer = memoryview(bytearray(max(record.nbytes for record in self._segment.records)))
        for record in self._segment.records:
            if self.here(record) is None:
                self.read_into(record, buffer[: record.nbytes])
        header = memoryview(bytearray(self._segment.records[0].offset))
        self._read_remote(0, header)
        self.sparse.keep(0, header)
        self.sparse.close()
        listing = self._repository.listing
        assert listing is not None, "ranges were read"
        file, cache = listing.files[self._segment.file], self._repository.cache
        key = file.sha256 or file.blob_id
        if key is None or not checksum_of(self.sparse.path, key).right:
            self.sparse.remove()  # a download of the whole file says what is wrong with it
            return
        with cache.locked(key):
            self.sparse.path.replace(cache.blob(key))
            self.sparse.list.unlink(missing_ok=True)
            cache.link(self._repository.commit, file.name, cache.blob(key))

    def _fetch(self, record: Record, buffer: memoryview) -> int:
        for last in (False, True):
            self._read_remote(record.offset, buffer)
            if _is_right(buffer, record):
                return record.nbytes * (2 if last else 1)
        raise ChecksumError(
            f"Expert {record.expert} in {self._segment.file} of {self._repository.repo_id} came twice with other bytes "
            f"than the manifest says: expected {record.checksum}, got {xxhash.xxh3_128_hexdigest(buffer)}.",
            advice="The store was published damaged, or a proxy in between changes files; tell the store's owner.",
            path=self._segment.file,
            offset=record.offset,
            expected=record.checksum,
        )

    def _read_remote(self, offset: int, buffer: memoryview) -> None:
        if self._remote is None:
            self._repository.need(self._segment.file)  # says that nothing may be downloaded
            raise AssertionError("it has no listing")
        done = 0
        with closing(self._remote.open("scattered")) as file:
            while done < len(buffer):
                done += file.read_at(buffer[done:], offset + done)


def sparse_file(repository: Repository, segment: Segment) -> SparseFile:
    """Where a part of a file of experts is kept, beside the contents that are whole."""
    listed = None if repository.listing is None else repository.listing.files.get(segment.file)
    name = f"coterie-{repository.commit}-{segment.file.replace('/', '--')}.part"
    return SparseFile(repository.cache.blob(name[:240]), listed.nbytes if listed is not None else segment.nbytes)


def _is_right(buffer: memoryview, record: Record) -> bool:
    return bool(xxhash.xxh3_128_hexdigest(buffer) == record.checksum)
