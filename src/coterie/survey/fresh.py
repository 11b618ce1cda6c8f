"""A profile that is made and gets nothing is not left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.errors import ProfileError
from coterie.profiles import ProfileDatabase, locate


@contextmanager
def fresh_profile(where: str | Path) -> Iterator[None]:
    """Removes a profile's file if it was not there before and the block fails before anything is counted in it."""
    path = locate(where).path
    is_new = path is not None and not path.exists()
    try:
        yield
    except BaseException:
        if is_new and path is not None and path.exists() and _is_empty(path):
            for name in (f"{path}-wal", f"{path}-shm", str(path)):
                Path(name).unlink(missing_ok=True)
        raise


def _is_empty(path: Path) -> bool:
    try:
        with ProfileDatabase(path) as database:
            return database.state() == (0, 0)
    except ProfileError:
        return False
