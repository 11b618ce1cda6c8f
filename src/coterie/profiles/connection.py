"""Engines of SQLAlchemy for profiles, with the settings that make several processes at once safe."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL, Engine

from coterie.profiles.location import Location, need_driver

BUSY_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 10
MAX_VALUE_BYTES = 256 << 20
"""Bytes of a value of a file at most."""
WRITING = "coterie_writing"
"""Execution option of connections that will write."""


def make_engine(location: Location) -> Engine:
    """The engine of a file or of a PostgreSQL database; connects to nothing yet.

    An SQLite file is in WAL mode (readers and a writer do not block each other), waits 30 seconds for another writer,
    and takes the write lock when a writing transaction begins, not in its middle. A file that this user cannot write
    is opened for reading.
    """
    if location.kind == "postgresql":
        need_driver()
        assert location.url is not None
        return create_engine(
            location.url, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}, hide_parameters=True
        )
    assert location.path is not None
    writable = _is_writable(location.path)
    url = location.url if writable else _read_only(location.path)
    assert url is not None
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        # SQLAlchemy then sends BEGIN itself, by the function below.
        connection.isolation_level = None
        # A file may come from a stranger: nothing in it may call functions, and no value be larger than memory allows.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)
        connection.execute("PRAGMA foreign_keys = ON")
        if writable:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")

    @event.listens_for(engine, "begin")
    def _began(connection: Connection) -> None:
        writing = connection.get_execution_options().get(WRITING, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return engine


def _is_writable(path: Path) -> bool:
    folder = path.absolute().parent
    if not path.exists():
        return True  # SQLite says why it cannot be made
    return os.access(path, os.W_OK) and os.access(folder, os.W_OK)


def _read_only(path: Path) -> URL:
    query = "mode=ro"
    if not Path(f"{path}-wal").exists():
        # Without a log beside it nothing is being written, and none can be made where nothing can be written.
        query += "&immutable=1"
    return URL.create("sqlite", database=f"file:{quote(os.fsencode(path.absolute()))}?{query}", query={"uri": "true"})
