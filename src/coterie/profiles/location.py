"""Where a profile is: a file, a PostgreSQL database, or another instance that publishes one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from coterie.errors import ProfileError, UsageError
from coterie.spec import install_advice


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A parsed place.

    Attributes:
        kind: What is there.
        url: For SQLAlchemy; None if it is an instance.
        path: The file; None if it is none.
        name: For people, without a password.
    """

    kind: Literal["file", "postgresql", "http"]
    url: URL | None
    path: Path | None
    name: str


def locate(where: str | Path) -> Location:
    """Reads a path or URL.

    Args:
        where: A path; ``sqlite:///path``; ``postgresql://user@host/database``; or ``http(s)://host`` of an instance.

    Raises:
        UsageError: If it is a URL of another kind, or none that can be read.
    """
    text = os.fspath(where)
    scheme, separator, rest = text.partition("://")
    if not separator or "/" in scheme:
        return _file(Path(text))
    if scheme in ("http", "https"):
        return Location(kind="http", url=None, path=None, name=text.rstrip("/"))
    if scheme == "sqlite":
        return _file(Path(rest.removeprefix("/")))
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise UsageError(
            f"{scheme}:// is not a place for profiles.",
            advice="Use a file, postgresql://USER@HOST/DATABASE or https://HOST.",
            got=scheme,
        )
    try:
        url = make_url(f"postgresql+psycopg://{rest}")
    except (ArgumentError, ValueError) as error:
        raise UsageError(f"{scheme}:// is followed by what is no address of a database.") from error
    name = url.set(drivername="postgresql").render_as_string(hide_password=True)
    return Location(kind="postgresql", url=url, path=None, name=name)


def _file(path: Path) -> Location:
    path = path.expanduser()
    return Location(kind="file", url=URL.create("sqlite", database=str(path)), path=path, name=str(path))


def need_driver() -> None:
    """Finds out whether PostgreSQL can be spoken to.

    Raises:
        ProfileError: If psycopg is not installed or does not find libpq.
    """
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise ProfileError(
            f"PostgreSQL needs a driver that is not there ({error}).",
            advice=install_advice("postgresql"),
        ) from error
