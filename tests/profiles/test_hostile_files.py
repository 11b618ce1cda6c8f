"""Files made by strangers: whatever is in their columns, what is raised is a :class:`ProfileError`."""

import contextlib
import os
import random
import shutil
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.errors import CoterieError, ProfileError, ProfileFormatError
from coterie.profiles import (
    Profile,
    ProfileDatabase,
    Usage,
    compare_domains,
    expert_card,
    expert_kinds,
    expert_load,
    json_lines,
    merge,
    rank_experts,
    separation,
    share_profile,
    spare_experts,
)
from coterie.profiles import tables as profile_tables
from profiles.bombs import bomb
from profiles.conftest import write_profile
from profiles.contents import contents
from profiles.small_readers import SmallReaders, small_readers
from profiles.synthetic import Router

COLUMNS = [(table.name, column.name) for table in profile_tables.metadata.sorted_tables for column in table.columns]
VALUES: list[Any] = [
    None, "", "x", "\x1b[2J", "9" * 50, "a" * 300, -1, 0, 1, 3, 255, 256, 2**31, 2**53, 2**62, 2**63 - 1, -(2**63),
    0.5, -0.0, 1e308, -1e308, float("inf"), b"", b"\0", b"\xff" * 8, b"\xff" * 64, b"\0" * 64, b"\0" * 4096, "\ud7ff",
]  # fmt: skip
STRANGE_TEXT = "CAST(X'FF61FF' AS TEXT)"
"""What no decoder takes for a text."""


def ask_everything(path: Path) -> None:
    """Every question that the command line asks of a profile, and a merge of it into another."""
    with ProfileDatabase(path) as database:
        profile = Profile.read(database, next(iter(database.identities()), None))
        usage = Usage.read(database, profile.identity)
        domains = list(profile.domains)
        questions: list[Callable[[], object]] = [
            lambda: contents(database),
            lambda: database.state(),
            lambda: rank_experts(profile, domain=domains[0]),
            lambda: rank_experts(profile, modality=next(iter(profile.modalities))),
            lambda: compare_domains(profile, domains[0], domains[-1]),
            lambda: expert_kinds(profile),
            lambda: expert_load(profile),
            lambda: separation(profile, "domain"),
            lambda: spare_experts(profile, domain=domains[0]),
            lambda: expert_card(profile, database, 0, 3),
            lambda: list(json_lines(share_profile(profile, database))),
            lambda: usage.expected(domain=domains[0]).values(),
            lambda: usage.likeliest_domain({key: bank.activations[0] for key, bank in usage.banks.items()}),
        ]
        for question in questions:
            with contextlib.suppress(CoterieError):
                question()
        with ProfileDatabase(path.with_name("into.db"), create=True) as into:
            merge([database], into)


def change(path: Path, table: str, column: str, value: Any, where: str, *, expression: str = "?") -> None:
    """Puts a value where a file has another, whatever its tables say of it."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA ignore_check_constraints = ON")
        parameters = (value,) if expression == "?" else ()
        connection.execute(f"UPDATE OR REPLACE {table} SET {column} = {expression} WHERE {where}", parameters)
    connection.close()


def without_rules(path: Path) -> None:
    """Makes all tables anew without types, keys and constraints, as a stranger may."""
    with sqlite3.connect(path) as connection:
        for table in profile_tables.metadata.sorted_tables:
            names = ", ".join(column.name for column in table.columns)
            rows = connection.execute(f"SELECT {names} FROM {table.name}").fetchall()
            connection.execute(f"DROP TABLE {table.name}")
            connection.execute(f"CREATE TABLE {table.name} ({names})")
            marks = ", ".join("?" for _ in table.columns)
            connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", rows)
    connection.close()


def ask_what_was_changed(path: Path) -> None:
    with warnings.catch_warnings():
        # Sums that overflow and divisions by zero in numpy are faults as well.
        warnings.simplefilter("error", RuntimeWarning)
        with contextlib.suppress(ProfileError):
            ask_everything(path)


@pytest.fixture(scope="module")
def lawless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small profile whose tables allow anything."""
    path = tmp_path_factory.mktemp("lawless") / "profile.db"
    write_profile(path, Router(planted={(0, "code"): (3,)}), {"code": 10, "prose": 10})
    without_rules(path)
    ask_everything(path)
    return path


@pytest.mark.parametrize(
    "values", [(2**63 - 1, b"\xff\xff"), pytest.param(("x", 0.5, -1, "", None), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_column_of_another_type_is_said_to_be_damaged(
    lawless: Path, tmp_path: Path, table: str, column: str, values: tuple[object, ...]
) -> None:
    path = tmp_path / "profile.db"
    for value in values:
        shutil.copy(lawless, path)
        change(path, table, column, value, "1")
        ask_what_was_changed(path)
    shutil.copy(lawless, path)
    change(path, table, column, None, "1", expression=STRANGE_TEXT)
    ask_what_was_changed(path)


READ = """
def read(path, uuid):
    with ProfileDatabase(path) as database:
        for ask in (lambda run: list(database.segments(run)), database.vocabulary):
            try:
                ask(uuid)
            except ProfileError as error:
                print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def readers() -> Iterator[SmallReaders]:
    with small_readers(READ) as found:
        yield found


@pytest.mark.parametrize("experts", [8, 4_000, 60_000])
def test_what_swells_is_refused_in_one_gibibyte(
    lawless: Path, readers: SmallReaders, tmp_path: Path, experts: int
) -> None:
    path = tmp_path / "profile.db"
    shutil.copy(lawless, path)
    uuid = ProfileDatabase(path).runs()[0].uuid
    change(path, "profile_banks", "experts", experts, "1")
    change(path, "profile_pairs", "counts", bomb(4 * min(experts * (experts - 1) // 2, 1 << 28) >> 20 << 20), "1")
    head = np.array([experts, 1 << 25], "<u4").tobytes()
    for table in ("profile_vocabulary", "profile_token_totals"):
        change(path, table, "counts", head + bomb(14 << 25), "1")
    done = readers.run(str(path), uuid)
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["ProfileFormatError", "ProfileFormatError"]


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for place in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ProfileFormatError, match="no regular file"):
            ProfileDatabase(place)


def test_names_of_files_may_be_no_text(planted: Path, tmp_path: Path) -> None:
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.db")
    shutil.copy(planted, strange)
    assert Profile.open(strange).tokens


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_changed_rows_raise_nothing_but_our_errors(lawless: Path, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = tmp_path / "profile.db"
    for _ in range(60):
        shutil.copy(lawless, path)
        (tmp_path / "into.db").unlink(missing_ok=True)
        for _ in range(draw.choice((1, 1, 2, 4))):
            table, column = draw.choice(COLUMNS)
            where = draw.choice(("1", "rowid = 1", f"rowid % {draw.randint(2, 9)} = 0"))
            if draw.random() < 0.1:
                change(path, table, column, None, where, expression=STRANGE_TEXT)
            elif draw.random() < 0.2:
                size = draw.choice((8, 16, 32, 64))
                change(path, table, column, draw.randbytes(size), where)
            else:
                change(path, table, column, draw.choice(VALUES), where)
        ask_what_was_changed(path)
