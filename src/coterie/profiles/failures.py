"""Errors of databases as errors of profiles: what happened, where, and what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from coterie.errors import (
    ProfileConnectionError,
    ProfileError,
    ProfileFormatError,
    ProfileNotFoundError,
    ProfileWriteError,
)

_SQLITE: dict[str, tuple[type[ProfileError], str, str]] = {
    "NOTADB": (ProfileFormatError, "is not a profile", "Give the file that a recording wrote."),
    "CORRUPT": (
        ProfileFormatError,
        "is damaged or cut off",
        "Use another copy of it. What can still be read: sqlite3 FILE .recover",
    ),
    "FULL": (ProfileWriteError, "cannot be written: the disk is full", "Make room; what was written before is intact."),
    "READONLY": (ProfileWriteError, "is read-only", "Allow this user to write it, or merge it into a file that is."),
    "CANTOPEN": (
        ProfileWriteError,
        "cannot be opened or made",
        "Check its folder, and that this user may write there.",
    ),
    "PERM": (ProfileWriteError, "may not be used by this user", "Check its permissions."),
    "BUSY": (ProfileWriteError, "is being written by another process", "Try again when that has ended."),
    "LOCKED": (ProfileWriteError, "is being written by another process", "Try again when that has ended."),
    "IOERR": (ProfileWriteError, "cannot be read or written", "Check the disk."),
}
_POSTGRESQL: dict[str, tuple[type[ProfileError], str, str]] = {
    "53100": (ProfileWriteError, "cannot be written: the server's disk is full", "Make room on the server."),
    "42501": (
        ProfileWriteError,
        "does not allow this user to do that",
        "Grant the user the tables, or its own schema.",
    ),
    "25006": (ProfileWriteError, "is read-only", "Connect to a server that takes writes."),
    "28": (ProfileConnectionError, "refuses this user", "Check name and password of the URL."),
    "3D000": (ProfileNotFoundError, "does not exist", "Make it first: createdb NAME."),
    "40": (ProfileWriteError, "was being written by others at the same moment", "Try again."),
}


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Raises what a database raises in the block as a :class:`ProfileError` about the profile of this name."""
    try:
        yield
    except DBAPIError as error:
        raise _explain(name, error.orig) from error
    except sqlite3.Error as error:
        raise _explain(name, error) from error
    except SQLAlchemyError as error:
        raise ProfileError(f"{name} cannot be used: {error}", path=name) from error


def _explain(name: str, error: BaseException | None) -> ProfileError:
    detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, sqlite3.Error):
        code = str(getattr(error, "sqlite_errorname", "")).removeprefix("SQLITE_")
        for start, (kind, problem, advice) in _SQLITE.items():
            if code.startswith(start):
                return kind(f"{name} {problem} ({detail}).", advice=advice, path=name)
        return ProfileFormatError(f"{name} cannot be used: {detail}.", path=name)
    state = getattr(error, "sqlstate", None)
    for start, (kind, problem, advice) in _POSTGRESQL.items():
        if state is not None and state.startswith(start):
            return kind(f"{name} {problem} ({detail}).", advice=advice, path=name)
    if state is None:
        # libpq tells of what never reached a server in words alone.
        if "does not exist" in str(error):
            return ProfileNotFoundError(
                f"{name}: {detail}", advice="Make the database first: createdb NAME.", path=name
            )
        return ProfileConnectionError(
            f"{name} does not answer: {detail}", advice="Check the address, and that the server runs.", path=name
        )
    return ProfileError(f"{name} cannot be used: {detail}.", path=name)
