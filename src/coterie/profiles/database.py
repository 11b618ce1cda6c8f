"""A profile on disk or on a server: runs, segments, and what is read back of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Connection, cast, func, select

from coterie.errors import ProfileFormatError, ProfileIdentityError, ProfileNotFoundError, ProfileWriteError, UsageError
from coterie.profiles import reading, tables, writing
from coterie.profiles.connection import WRITING, make_engine
from coterie.profiles.facts import Group, Mark, RunFacts, SegmentFacts, Vocabulary
from coterie.profiles.failures import translated
from coterie.profiles.location import Location, locate
from coterie.profiles.reading import RunRows
from coterie.profiles.rows import checked_rows
from coterie.profiles.schema import prepare

_MOST_LISTED = 8


class ProfileDatabase:
    """An open profile: an SQLite file or a PostgreSQL database. A context manager; safe to use from several threads.

    Several processes may use one at once. Every method that writes is one transaction, and may be repeated.

    Attributes:
        location: Where it is.
        name: The same for people, without a password.
    """

    def __init__(self, where: str | Path, *, create: bool = False) -> None:
        """Opens a profile and brings its tables up to date.

        Args:
            where: A path, or ``postgresql://USER@HOST/DATABASE``.
            create: Whether one is made where there is none.

        Raises:
            UsageError: If ``where`` is a place of another kind.
            ProfileNotFoundError: If there is no profile, and none is to be made.
            ProfileFormatError: If it is something else, or damaged.
            ProfileVersionError: If a newer Coterie made it.
            ProfileWriteError: If it cannot be made or brought up to date.
            ProfileConnectionError: If the server does not answer.
        """
        self.location = locate(where)
        self.name = self.location.name
        if self.location.kind == "http":
            raise UsageError(
                f"{self.name} is another instance, not a database.",
                advice="Pull from it with `coterie profile sync FILE URL`.",
                got=self.name,
            )
        check_file(self.location, create=create)
        self._engine = make_engine(self.location)
        try:
            with translated(self.name):
                prepare(self._engine, self.name, create=create)
        except BaseException:
            self._engine.dispose()
            raise

    def __enter__(self) -> ProfileDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def named(self, name: str) -> ProfileDatabase:
        """The same open profile under another name, for messages that are read elsewhere."""
        other = copy.copy(self)
        other.name = name
        return other

    def close(self) -> None:
        """Closes all connections. Harmless when repeated; the next use opens one again."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one state of the database, for the functions of :mod:`coterie.profiles.reading`."""
        options = {} if self.location.kind == "file" else {"isolation_level": "REPEATABLE READ"}
        with translated(self.name), self._engine.connect().execution_options(**options) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction, for the functions of :mod:`coterie.profiles.writing`."""
        options = {WRITING: True}
        with (
            translated(self.name),
            self._engine.connect().execution_options(**options) as connection,
            connection.begin(),
        ):
            yield connection

    def identities(self) -> dict[str, str]:
        """Fingerprints of the models that runs are of → a name of each."""
        table = tables.runs
        query = (
            select(table.c.identity, func.min(table.c.model).label("model"))
            .group_by(table.c.identity)
            .order_by(table.c.identity)
        )
        with self.reading() as connection:
            return {row.identity: row.model for row in checked_rows(connection, query)}

    def identity(self, expected: str | None = None) -> str:
        """The fingerprint of the model that this profile is about.

        Args:
            expected: The fingerprint that is wanted, or its beginning; None if there must be one alone.

        Raises:
            ProfileNotFoundError: If nothing was recorded.
            ProfileIdentityError: If it is about another model.
            UsageError: If it is about several, and ``expected`` does not say which.
        """
        there = self.identities()
        if not there:
            raise ProfileNotFoundError(f"Nothing was recorded in {self.name} yet.", path=self.name)
        matching = [identity for identity in there if expected is None or identity.startswith(expected)]
        if len(matching) == 1:
            return matching[0]
        listed = some_of([f"{identity} ({name})" for identity, name in there.items()])
        if not matching:
            raise ProfileIdentityError(
                f"{self.name} is about another model: {listed}; not about {expected}.",
                advice="Give the profile of this model, or record one.",
                expected=expected,
                got=sorted(there),
                path=self.name,
            )
        raise UsageError(
            f"{self.name} is about several models: {listed}.",
            advice="Say which, by its fingerprint.",
            got=sorted(there),
        )

    def runs(self, identity: str | None = None) -> list[RunFacts]:
        """All runs, or those of a model, by UUID."""
        with self.reading() as connection:
            return [rows.facts for rows in reading.read_runs(connection, identity)]

    def run(self, uuid: str) -> RunFacts:
        """The run of this UUID.

        Raises:
            ProfileNotFoundError: If it is not there.
        """
        with self.reading() as connection:
            return self._rows(connection, uuid).facts

    def _rows(self, connection: Connection, uuid: str) -> RunRows:
        rows = reading.read_run(connection, uuid)
        if rows is None:
            raise ProfileNotFoundError(f"{self.name} has no run {uuid}.", path=self.name, run=uuid)
        return rows

    def add_run(self, run: RunFacts) -> None:
        """Enters a run, unless it is there.

        Raises:
            ProfileIdentityError: If it is there as one of another model.
        """
        with self.writing() as connection:
            writing.put_run(connection, run)

    def digests(self, uuid: str) -> dict[int, str]:
        """Numbers of a run's segments → digests of their content, ascending; empty if the run is not there."""
        with self.reading() as connection:
            rows = reading.read_run(connection, uuid)
            return {} if rows is None else reading.read_digests(connection, rows)

    def segments(self, uuid: str, numbers: Sequence[int] | None = None) -> Iterator[SegmentFacts]:
        """Segments of a run, ascending: those of these numbers that are there, or all."""
        with self.reading() as connection:
            yield from reading.read_segments(connection, self._rows(connection, uuid), numbers)

    def vocabulary(self, uuid: str) -> Vocabulary:
        """Counts of tokens of a run."""
        with self.reading() as connection:
            return reading.read_vocabulary(connection, self._rows(connection, uuid))

    def marks(self, uuid: str) -> dict[str, Mark]:
        """How far the inputs of a run have been counted, by key."""
        with self.reading() as connection:
            return reading.read_marks(connection, self._rows(connection, uuid))

    def write_segment(
        self,
        uuid: str,
        segment: SegmentFacts,
        *,
        marks: Iterable[Mark] = (),
        vocabulary: Vocabulary | None = None,
        new: bool = False,
    ) -> None:
        """Enters a segment of a run that is there, joined with what is there of it.

        Args:
            uuid: The run.
            segment: Counters of its banks.
            marks: Inputs that are counted further with this segment.
            vocabulary: Counts of tokens up to this segment.
            new: The segment must not be there yet.

        Raises:
            ProfileNotFoundError: If the run is not there.
            ProfileWriteError: If it cannot be written, or is there and must not be.
        """
        with self.writing() as connection:
            rows = self._rows(connection, uuid)
            _check_banks(rows, segment)
            writing.put_segment(connection, rows, segment, new=new)
            writing.put_marks(connection, rows, marks)
            if vocabulary is not None:
                writing.put_vocabulary(connection, rows, vocabulary)

    def write_vocabulary(self, uuid: str, vocabulary: Vocabulary) -> None:
        """Enters counts of tokens where they are later than those that are there; errors as of `write_segment`."""
        with self.writing() as connection:
            writing.put_vocabulary(connection, self._rows(connection, uuid), vocabulary)

    def write_marks(self, uuid: str, marks: Iterable[Mark]) -> None:
        """Enters marks where they are further on; errors as of `write_segment`."""
        with self.writing() as connection:
            writing.put_marks(connection, self._rows(connection, uuid), marks)

    def group_segments(self, identity: str) -> dict[Group, int]:
        """Groups of tokens → in how many segments of a model's runs they have any."""
        with self.reading() as connection:
            return reading.read_group_segments(connection, identity)

    def state(self) -> tuple[int, int]:
        """Numbers that change whenever a segment is added: for whoever keeps what was computed from a profile."""
        table = tables.segments
        with self.reading() as connection:
            tokens = cast(func.coalesce(func.sum(table.c.tokens), 0), BigInteger)
            query: Any = select(func.count().label("segments"), tokens.label("tokens")).select_from(table)
            found = next(checked_rows(connection, query))
            return found.segments, found.tokens


def some_of(names: Sequence[str]) -> str:
    """Names for a message, which is to stay one however many there are."""
    rest = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {rest:,} more" if rest > 0 else "")


def check_file(location: Location, *, create: bool) -> None:
    """Finds out, without opening it, that a profile in a file is not there, or cannot be made.

    Raises:
        ProfileFormatError: If it is a directory.
        ProfileNotFoundError: If it is not there and not to be made.
        ProfileWriteError: If it is to be made where there is no directory.
    """
    path = location.path
    if path is None:
        return
    if path.is_dir():
        raise ProfileFormatError(f"{path} is a directory; a profile is a file.", path=path)
    if path.exists():
        if not path.is_file():
            # A FIFO would be waited for, and a device be read without end.
            raise ProfileFormatError(f"{path} is no regular file; a profile is one.", path=path)
        return
    if not create:
        raise ProfileNotFoundError(
            f"There is no profile {path}.", advice="Record one first, or merge others into it.", path=path
        )
    if not path.absolute().parent.is_dir():
        raise ProfileWriteError(f"There is no directory {path.absolute().parent} to make {path.name} in.", path=path)


def _check_banks(rows: RunRows, segment: SegmentFacts) -> None:
    for bank in segment.banks:
        if bank.bank not in rows.bank_ids:
            raise UsageError(f"Run {rows.facts.uuid} has no bank {bank.bank}.", bank=bank.bank)
