"""Brings a record from its source into memory, in pieces, or says exactly why it cannot."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import xxhash

from coterie.errors import ChecksumError, CoterieError, ReadError
from coterie.records.files import FileCache, SharedBytes, pages_around
from coterie.records.spans import Span, distribute, join_extents
from coterie.spec import RECORD_ALIGNMENT, ExpertKey, ExpertSource, Extent, RecordLayout, round_up

REPAIR = "Verify the file; copy or extract it again if it is damaged."


class Step(Protocol):
    """A part of a read that can run beside the others."""

    def run(self) -> None:
        """Does it; raises a CoterieError if it cannot be done."""
        ...

    def close(self) -> None:
        """Lets go of what it needed. Harmless when repeated."""
        ...


class Piece:
    """What one system call brings into a record: its file is open, and its place in memory is known.

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
        self._file = self._open_direct() if is_aligned(extent) and files.may_be_direct(extent.source) else None

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

    def _open_direct(self) -> SharedBytes | None:
        try:
            return self._files.take(self._extent.source, "direct")
        except OSError as error:
            self._refused(error, 0)
            return None

    def _refused(self, error: OSError, done: int) -> None:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise read_error(self._key, self._extent, done, str(error)) from error
        self._files.refuse_direct(self._extent.source)

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
            with self._files.reading(extent.source) as file:
                while done < extent.nbytes:
                    count = file.read_at(self._target[done:], extent.offset + done)
                    if count == 0:
                        raise read_error(self._key, extent, done, f"the file ends at {file.size()}")
                    done += count
                file.drop(*pages_around(extent.offset, extent.nbytes))
        except OSError as error:
            raise read_error(self._key, extent, done, str(error)) from error


class Joined:
    """Neighbouring extents of a record that one read brings, from where every read takes its time.

    Args:
        files: Where files are kept open.
        key: The expert, for messages.
        span: The extents.
        record: The whole record.
    """

    def __init__(self, files: FileCache, key: ExpertKey, span: Span, record: memoryview) -> None:
        self._files = files
        self._key = key
        self._span = span
        self._record = record

    def run(self) -> None:
        """See :class:`Step`.

        Raises:
            ReadError: If the bytes end early.
            CoterieError: What reading them ended in.
        """
        span = self._span
        nbytes, first = span.end - span.start, span.extents[0]
        alone = len(span.extents) == 1
        buffer = self._record[first.at : first.at + nbytes] if alone else memoryview(bytearray(nbytes))
        done = 0
        try:
            with self._files.reading(span.source) as file:
                while done < nbytes:
                    count = file.read_at(buffer[done:], span.start + done)
                    if count == 0:
                        raise read_error(self._key, first, done, f"the file ends at {file.size()}")
                    done += count
        except OSError as error:
            raise read_error(self._key, first, done, str(error)) from error
        if not alone:
            distribute(span, span.start, nbytes, self._record, buffer)

    def close(self) -> None:
        """See :class:`Step`; there is nothing to let go of."""


class Decoding:
    """The step that has the source compute a record."""

    def __init__(self, source: ExpertSource, key: ExpertKey, target: memoryview) -> None:
        self._source = source
        self._key = key
        self._target = target
        self.nbytes = 0

    def run(self) -> None:
        """See :class:`Step`."""
        try:
            self.nbytes = self._source.read_into(self._key, self._target)
        except CoterieError:
            raise
        except Exception as error:
            raise ReadError(
                f"Expert {self._key} could not be decoded: {error!r}.", advice=REPAIR, key=self._key
            ) from error

    def close(self) -> None:
        """See :class:`Step`; there is nothing to let go of."""


class RecordRead:
    """A read that is ready to run: all that takes thought is done before, or left for :meth:`finish`.

    Between two reads nothing is outstanding, so what happens there is as little as possible.

    Attributes:
        steps: Its parts, to be run in any order or at once.
    """

    __slots__ = ("_extents", "_key", "_record", "_source", "_verify", "steps")

    def __init__(
        self,
        source: ExpertSource,
        key: ExpertKey,
        record: memoryview,
        extents: tuple[Extent, ...] | None,
        steps: Sequence[Step],
        *,
        verify: bool,
    ) -> None:
        self._source = source
        self._key = key
        self._record = record
        self._extents = extents
        self._verify = verify
        self.steps = steps

    def close(self) -> None:
        """Lets go of the files. Harmless when repeated."""
        for step in self.steps:
            step.close()

    def finish(self) -> int:
        """To be called when all steps have run; returns the bytes read.

        Raises:
            ChecksumError: With ``verify``, if the record differs from its checksum.
        """
        self.close()
        if self._verify:
            self._check()
        if self._extents is None:
            return sum(step.nbytes for step in self.steps if isinstance(step, Decoding))
        return sum(extent.nbytes for extent in self._extents)

    def _check(self) -> None:
        expected = self._source.checksum(self._key)
        if expected is None:
            return
        got = xxhash.xxh3_128(self._record).hexdigest()
        if got == expected:
            return
        extents = self._extents
        path = extents[0].source.place if extents else None
        offset = extents[0].offset if extents else None
        place = f" in {path} at offset {offset}" if extents else ""
        raise ChecksumError(
            f"The record of expert {self._key}{place} differs from its checksum: expected {expected}, got {got}.",
            advice="The file is damaged: copy or extract it again.",
            key=self._key,
            path=path,
            offset=offset,
            expected=expected,
            got=got,
        )


class RecordReader:
    """Fills records from an :class:`~coterie.spec.ExpertSource`. Safe to use from several threads.

    One aligned extent is read with O_DIRECT where the filesystem has it. Anything else is read through the page cache
    and dropped from it. Records without extents are decoded by the source.

    Args:
        source: Where the bytes are.
        verify: Compare every record that has a checksum with it.
        direct: Whether to try O_DIRECT.
        max_files: Files kept open.
        read_nbytes: Longer aligned extents are read in several steps of about the same length; None for one.
    """

    def __init__(
        self,
        source: ExpertSource,
        *,
        verify: bool = False,
        direct: bool = True,
        max_files: int = 64,
        read_nbytes: int | None = None,
    ) -> None:
        self._source = source
        self._verify = verify
        self._read_nbytes = read_nbytes
        self._files = FileCache(limit=max_files, direct=direct)

    def read(self, key: ExpertKey, layout: RecordLayout, record: memoryview) -> int:
        """Fills ``record`` (at least ``layout.nbytes`` bytes, on a 4096-byte address) and returns the bytes read.

        Bytes outside the extents (outside the fields, where the source decodes) are zero afterwards.

        Raises:
            ReadError: With facts ``key``, ``path``, ``offset``, ``expected`` and ``got`` (bytes).
            ChecksumError: With ``verify``, if the record differs from its checksum.
        """
        read = self.prepare(key, layout, record)
        try:
            for step in read.steps:
                step.run()
            return read.finish()
        finally:
            read.close()

    def prepare(self, key: ExpertKey, layout: RecordLayout, record: memoryview) -> RecordRead:
        """A read of a record (see :meth:`read`) with its files open. It must be finished or closed.

        Raises:
            ReadError: If a file cannot be opened, or an extent is not in the record.
        """
        extents = self._source.extents(key)
        content = record[: layout.nbytes]
        steps: list[Step] = []
        if extents is None:
            _zero_gaps(record, ((field.offset, field.nbytes) for field in layout.fields))
            steps.append(Decoding(self._source, key, content))
            return RecordRead(self._source, key, content, None, steps, verify=self._verify)
        try:
            distant: list[Extent] = []
            for extent in extents:
                if extent.at < 0 or extent.nbytes < 0 or extent.at + extent.nbytes > layout.nbytes:
                    why = f"its place in the record, {extent.at}, is outside {layout.nbytes} bytes"
                    raise read_error(key, extent, 0, why)
                if extent.source.distant:
                    distant.append(extent)
                    continue
                for part in split(extent, self._read_nbytes):
                    steps.append(Piece(self._files, key, part, record[part.at : part.at + part.nbytes]))
            if distant:
                steps += (Joined(self._files, key, span, content) for span in join_extents(distant))
            _zero_gaps(record, ((extent.at, extent.nbytes) for extent in extents))
        except BaseException:
            for step in steps:
                step.close()
            raise
        return RecordRead(self._source, key, content, extents, steps, verify=self._verify)

    @property
    def open_files(self) -> int:
        """Files open now."""
        return self._files.open_count

    def close(self) -> None:
        """Closes the open files; a later read is an error."""
        self._files.close()


def _zero_gaps(record: memoryview, filled: Iterable[tuple[int, int]]) -> None:
    end = 0
    for start, nbytes in sorted(filled):
        if start > end:
            record[end:start] = bytes(start - end)
        end = max(end, start + nbytes)
    if end < len(record):
        record[end:] = bytes(len(record) - end)


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
            source=extent.source,
            offset=extent.offset + start,
            nbytes=min(step, extent.nbytes - start),
            at=extent.at + start,
        )


def read_error(key: ExpertKey, extent: Extent, got: int, why: str) -> ReadError:
    """The error for an extent of which only ``got`` bytes could be read."""
    return ReadError(
        f"Expert {key} could not be read: {extent.source.place} at offset {extent.offset}: "
        f"expected {extent.nbytes} bytes, got {got}: {why}.",
        advice=REPAIR,
        key=key,
        path=extent.source.place,
        offset=extent.offset,
        expected=extent.nbytes,
        got=got,
    )
