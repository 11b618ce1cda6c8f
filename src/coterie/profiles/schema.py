"""The tables of a profile: found, made, and brought up to date."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import Engine

from coterie.errors import ProfileFormatError, ProfileNotFoundError, ProfileVersionError
from coterie.profiles.connection import WRITING
from coterie.profiles.tables import APPLICATION_ID, HEAD, REVISIONS, metadata

VERSION_TABLE = "profile_schema"
_LOCK = 0x436F746572696531
"""Of PostgreSQL's advisory locks, the one under which tables are made: two processes must not do it at once."""


def prepare(engine: Engine, name: str, *, create: bool) -> None:
    """Makes sure that the tables are those that this program knows.

    Args:
        engine: Of the profile.
        name: Of the profile, for messages.
        create: Whether tables are made where there are none.

    Raises:
        ProfileNotFoundError: If there are none, and none are to be made.
        ProfileFormatError: If the file is a database of something else.
        ProfileVersionError: If a newer program made them.
    """
    with engine.connect() as connection:
        revision = find_revision(connection, name)
    if revision == HEAD:
        return
    if revision is None and not create:
        raise ProfileNotFoundError(
            f"There is no profile in {name}.", advice="Record one first, or merge others into it.", path=name
        )
    with engine.connect().execution_options(**{WRITING: True}) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        # Another process may have been faster.
        if find_revision(connection, name) != HEAD:
            upgrade(connection)
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")


def find_revision(connection: Connection, name: str) -> str | None:
    """The revision of the tables; None if there are none of ours (and, in a file, none at all).

    Raises:
        ProfileFormatError: If the file is a database of something else, or some of its tables are gone.
        ProfileVersionError: If the revision is not known.
    """
    present = set(inspect(connection).get_table_names())
    ours = present & {VERSION_TABLE, *metadata.tables}
    if VERSION_TABLE not in present:
        # A PostgreSQL database may well hold tables of others beside ours; a file should not.
        if ours or (present and connection.dialect.name == "sqlite"):
            raise ProfileFormatError(
                f"{name} is a database, but no profile: it has the tables {', '.join(sorted(present)[:5])}.",
                advice="Give another file.",
                path=name,
            )
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all()
    if not found:
        return None
    revision = str(found[0])
    if len(found) > 1 or revision not in REVISIONS:
        raise ProfileVersionError(
            f"{name} has the schema {', '.join(map(str, found))}; this Coterie knows schemas up to {HEAD}.",
            advice="It was made by a newer Coterie: update this one. Nothing was changed.",
            expected=HEAD,
            got=revision,
            path=name,
        )
    if revision == HEAD and (missing := sorted(set(metadata.tables) - present)):
        raise ProfileFormatError(
            f"{name} is damaged: its tables {', '.join(missing)} are gone.", advice="Use another copy.", path=name
        )
    return revision


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Runs the migrations that are missing, within the connection's transaction.

    Args:
        connection: Writing, in a transaction: it is all of them or none.
        revision: How far.
    """
    # Imported here: only a new or old profile needs Alembic.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    command.upgrade(config, revision)
