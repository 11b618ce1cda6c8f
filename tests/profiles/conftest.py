"""Profiles made up for tests, and a PostgreSQL server that lives as long as the test session."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.profiles import ProfileDatabase, RunFacts, TokenCounts, Vocabulary
from coterie.spec import BankKey
from profiles.synthetic import Router, recorded, run_facts, shapes

REQUIRED = "COTERIE_REQUIRE_POSTGRESQL"
"""Where this is set, a missing server is a failure: CI must not skip these tests."""


def find_postgresql() -> Path | None:
    """The folder with PostgreSQL's programs; Debian keeps them out of the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


def server_user() -> dict[str, Any]:
    """Who the server runs as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The folder of the socket of a throw-away PostgreSQL server."""
    programs = find_postgresql()
    if programs is None:
        message = "PostgreSQL is not installed (on Debian and Ubuntu: apt install postgresql)."
        if os.environ.get(REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    # Not under pytest's folder, which other users cannot enter; and short, because a socket's path may be no longer.
    folder = Path(tempfile.mkdtemp(prefix="coterie-pg-"))
    user = server_user()
    if user:
        os.chown(folder, user["user"], user["group"])

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120, **user)
        assert done.returncode == 0, done.stdout + done.stderr

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-U", "coterie", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c max_connections=50"
        with (folder / "log").open("w"):
            (folder / "log").chmod(0o666)
        run("pg_ctl", "-D", data, "-w", "-t", "60", "-l", str(folder / "log"), "-o", settings, "start")
        try:
            yield str(folder)
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql(postgresql_server: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(host=postgresql_server, user="coterie", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield f"postgresql://coterie@/{name}?host={postgresql_server}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty profile can be made: once a file, once a database on a server."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgresql"))
    return str(tmp_path / "profile.db")


def write_profile(
    where: str | Path, router: Router, documents: dict[str, int], *, run: RunFacts | None = None, **options: Any
) -> RunFacts:
    """Records a made-up run into a profile."""
    segments, vocabulary = recorded(router, documents, **options)
    if run is None:
        run = run_facts(shapes(router.layers, router.experts, router.top_k))
    with ProfileDatabase(where, create=True) as database:
        database.add_run(run)
        for segment in segments:
            database.write_segment(run.uuid, segment)
        database.write_vocabulary(run.uuid, vocabulary)
    return run


def favour(where: str | Path, bank: BankKey, expert: int, token: int) -> None:
    """Says in all runs of a profile that a token, which passed often, always selected an expert."""

    def counts(experts: int, of: int) -> TokenCounts:
        ids, number = np.array([of], np.uint16), np.array([token], np.uint32)
        return TokenCounts(
            segments=1 << 20, experts=ids, tokens=number, counts=np.array([200]), dropped=np.zeros(experts, np.int64)
        )

    with ProfileDatabase(where) as database:
        for run in database.runs():
            (shape,) = (shape for shape in run.banks if shape.bank == bank)
            found = Vocabulary(
                banks={bank: counts(shape.experts, expert)}, totals={(bank.component, bank.bank): counts(1, 0)}
            )
            database.write_vocabulary(run.uuid, found)


@pytest.fixture(scope="session")
def planted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``planted`` is a copy of."""
    path = tmp_path_factory.mktemp("planted") / "planted.db"
    router = Router(planted={(0, "code"): (3,), (1, "prose"): (5, 6)})
    write_profile(path, router, {"code": 16, "prose": 16, "law": 16})
    return path


@pytest.fixture
def planted(planted_once: Path, tmp_path: Path) -> Path:
    """A profile of a model with 2 layers of 8 experts, top 2, three of which serve a domain each."""
    return shutil.copy(planted_once, tmp_path / "planted.db")
