"""Files and servers: what is written is read back, and what cannot be used is said so."""

import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

import coterie
from coterie.errors import (
    ProfileConnectionError,
    ProfileError,
    ProfileFormatError,
    ProfileIdentityError,
    ProfileNotFoundError,
    ProfileVersionError,
    ProfileWriteError,
    UsageError,
)
from coterie.profiles import Mark, Profile, ProfileDatabase, SegmentFacts, locate, rank_experts
from coterie.profiles import tables as profile_tables
from coterie.profiles.connection import WRITING
from coterie.profiles.facts import join_segments
from coterie.profiles.packing import segment_digest
from coterie.profiles.schema import upgrade
from coterie.profiles.tables import APPLICATION_ID, HEAD, REVISIONS
from profiles.conftest import write_profile
from profiles.contents import contents, same_segments
from profiles.synthetic import IDENTITY, Router, recorded, run_facts, shapes

DATA = Path(__file__).parent / "data"


def test_what_is_written_is_read_back(place) -> None:
    segments, vocabulary = recorded(Router(), {"code": 5, "law": 4})
    run = run_facts(label="a run", tokenizer="tok")
    with ProfileDatabase(place, create=True) as database:
        database.add_run(run)
        for segment in segments:
            database.write_segment(run.uuid, segment, marks=[Mark("k", segment.number, False)])
        database.write_vocabulary(run.uuid, vocabulary)
    with ProfileDatabase(place) as database:
        assert database.runs() == [run] == [database.run(run.uuid)]
        assert database.identities() == {IDENTITY: "tiny"}
        assert same_segments(list(database.segments(run.uuid)), segments)
        assert same_segments(list(database.segments(run.uuid, [3, 1, 99])), [segments[1], segments[3]])
        assert database.digests(run.uuid) == {s.number: segment_digest(s) for s in segments}
        assert database.marks(run.uuid) == {"k": Mark("k", 4, False)}
        found = database.vocabulary(run.uuid)
        for kind in ("banks", "totals"):
            ours, theirs = getattr(vocabulary, kind), getattr(found, kind)
            assert list(ours) == list(theirs)
            for key, state in ours.items():
                assert state.counts.tolist() == theirs[key].counts.tolist()
                assert state.tokens.tolist() == theirs[key].tokens.tolist()
        assert database.state() == (5, 9 * 64)
        profile = Profile.read(database)
    assert profile.domains == {"code": 5 * 64, "law": 4 * 64}
    key = run.banks[0].bank
    expected = sum(c.activations for s in segments for b in s.banks if b.bank == key for c in b.groups)
    assert profile.banks[key].activations.sum(axis=0).tolist() == expected.tolist()


def test_writing_again_changes_nothing_and_joins_what_differs(place) -> None:
    (segment, other), vocabulary = recorded(Router(), {"code": 4})
    run = run_facts()
    with ProfileDatabase(place, create=True) as database:
        for _ in range(2):
            database.add_run(run)
            database.write_segment(run.uuid, segment, marks=[Mark("a", 2, True)])
            database.write_segment(run.uuid, segment, marks=[Mark("a", 1, False)])
            database.write_vocabulary(run.uuid, vocabulary)
        assert same_segments(list(database.segments(run.uuid)), [segment])
        assert database.marks(run.uuid) == {"a": Mark("a", 2, True)}
        changed = type(other)(number=0, banks=other.banks)
        database.write_segment(run.uuid, changed)
        assert same_segments(list(database.segments(run.uuid)), [join_segments(segment, changed)])
        with pytest.raises(ProfileWriteError, match="is there already: another process records it"):
            database.write_segment(run.uuid, changed, new=True)


def test_large_counts_are_kept(place) -> None:
    (segment,), _ = recorded(Router(layers=1, experts=2, top_k=1), {"code": 1})
    (counts,) = segment.banks[0].groups
    counts.activations[:] = 2**40, 3
    object.__setattr__(counts, "tokens", 2**41)
    run = run_facts(shapes(1, 2, 1))
    with ProfileDatabase(place, create=True) as database:
        database.add_run(run)
        database.write_segment(run.uuid, segment)
        table = Profile.read(database).banks[run.banks[0].bank]
    assert table.activations.tolist() == [[2**40, 3]]
    assert table.tokens.tolist() == [2**41]


def test_texts_that_a_server_would_not_take_are_cut(place) -> None:
    run = run_facts(label="x\0y" + "z" * 300)
    with ProfileDatabase(place, create=True) as database:
        database.add_run(run)
        assert database.runs()[0].label == ("xy" + "z" * 300)[:255]


def test_migrations_make_the_tables_that_the_program_uses(place) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with ProfileDatabase(place, create=True) as database, database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "profile_schema"})
        assert context.get_current_revision() == HEAD == REVISIONS[-1]
        assert compare_metadata(context, profile_tables.metadata) == []


def test_revisions_are_those_of_the_migrations() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(coterie.__file__).parent / "profiles" / "migrations"))
    script = ScriptDirectory.from_config(config)
    assert tuple(reversed([step.revision for step in script.walk_revisions()])) == REVISIONS


def oldest(tmp_path: Path) -> Path:
    """A file of the first schema with rows in it, as it was written then."""
    path = tmp_path / "oldest.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((DATA / "schema-0001.sql").read_text(encoding="utf-8"))
    connection.close()
    return path


def test_the_oldest_schema_answers_like_the_newest(tmp_path) -> None:
    with ProfileDatabase(oldest(tmp_path)) as database:
        profile = Profile.read(database)
        (uuid,) = contents(database)
        assert list(database.marks(uuid).values()) == [Mark("0" * 32, 3, True)]
        assert database.vocabulary(uuid).totals["text", "mlp"].counts.sum() == 8 * 16
    assert (profile.model, profile.domains) == ("tiny", {"code": 64, "law": 64})
    best = rank_experts(profile, domain="code").experts[0]
    assert (best.expert_id, best.activations, best.specialist) == (3, 64, True)
    with sqlite3.connect(tmp_path / "oldest.db") as connection:
        assert connection.execute("SELECT version_num FROM profile_schema").fetchall() == [(HEAD,)]
    connection.close()


def test_an_upgrade_is_all_or_nothing(tmp_path, monkeypatch) -> None:
    from coterie.profiles import schema

    def fails(connection, revision="head"):
        upgrade(connection, revision)
        raise ProfileError("killed here")

    monkeypatch.setattr(schema, "upgrade", fails)
    with pytest.raises(ProfileError, match="killed here"):
        ProfileDatabase(tmp_path / "p.db", create=True)
    monkeypatch.undo()
    with pytest.raises(ProfileNotFoundError, match="There is no profile in"):
        ProfileDatabase(tmp_path / "p.db")
    ProfileDatabase(tmp_path / "p.db", create=True).close()


def test_a_newer_schema_is_left_alone(place) -> None:
    with ProfileDatabase(place, create=True) as database, database.writing() as connection:
        connection.exec_driver_sql("UPDATE profile_schema SET version_num = '0099'")
    with pytest.raises(ProfileVersionError, match=r"has the schema 0099.*newer Coterie") as caught:
        ProfileDatabase(place)
    assert (caught.value.expected, caught.value.got) == (HEAD, "0099")


def test_files_are_marked_as_profiles(planted) -> None:
    assert int.from_bytes(planted.read_bytes()[68:72], "big") == APPLICATION_ID


def test_a_missing_profile_is_not_made_by_asking(tmp_path, postgresql) -> None:
    with pytest.raises(ProfileNotFoundError, match="There is no profile"):
        ProfileDatabase(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(ProfileNotFoundError, match="There is no profile in postgresql://"):
        ProfileDatabase(postgresql)
    with pytest.raises(ProfileWriteError, match="There is no directory"):
        ProfileDatabase(tmp_path / "no" / "p.db", create=True)
    with pytest.raises(ProfileFormatError, match="is a directory"):
        ProfileDatabase(tmp_path)
    with ProfileDatabase(tmp_path / "new.db", create=True) as empty:
        with pytest.raises(ProfileNotFoundError, match="Nothing was recorded"):
            Profile.read(empty)
        with pytest.raises(ProfileNotFoundError, match="has no run"):
            empty.run("x")
        empty.add_run(run_facts())
        with pytest.raises(ProfileNotFoundError, match="nothing was counted in them"):
            Profile.read(empty)


@pytest.mark.parametrize("content", [b"not a database at all, but quite a long text" * 100, b"SQLite format 3\0" * 300])
def test_a_file_of_something_else_is_refused_and_not_changed(tmp_path, content) -> None:
    path = tmp_path / "p.db"
    path.write_bytes(content)
    with pytest.raises(ProfileFormatError):
        ProfileDatabase(path, create=True)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused(tmp_path) -> None:
    with sqlite3.connect(tmp_path / "p.db") as connection:
        connection.execute("CREATE TABLE recipes (id INTEGER)")
    connection.close()
    with pytest.raises(ProfileFormatError, match="no profile: it has the tables recipes"):
        ProfileDatabase(tmp_path / "p.db", create=True)


def test_a_server_may_hold_other_tables_too(postgresql) -> None:
    import psycopg

    with psycopg.connect(postgresql) as connection:
        connection.execute("CREATE TABLE runs (id INTEGER)")
    write_profile(postgresql, Router(), {"code": 2})
    assert Profile.open(postgresql).tokens == 128


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_file_that_was_cut_off_is_refused(planted, kept) -> None:
    whole = planted.read_bytes()
    planted.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ProfileFormatError, match="damaged or cut off"):
        Profile.open(planted)


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("counts", "activations", b"123", "3 bytes instead of 32"),
        ("counts", "gate_mass", b"\xff" * 64, "not finite"),
        ("counts", "tokens", -1, "-1 is no value of the column tokens"),
        ("counts", "tokens", 0, "a group has no tokens"),
        ("counts", "tokens", 5, "times in 5 tokens"),
        ("pairs", "counts", b"not zlib", "pairs|incorrect header|segment"),
        ("banks", "experts", 10**9, "of 1000000000 experts per token"),
        ("groups", "modality", "smell", "Unknown modality 'smell'"),
        ("segments", "digest", "0" * 32, "is not what was written"),
    ],
)  # fmt: skip
def test_damaged_rows_are_found(planted, table, column, value, message) -> None:
    with sqlite3.connect(planted) as connection:
        connection.execute(f"UPDATE profile_{table} SET {column} = ?", (value,))
    connection.close()
    with ProfileDatabase(planted) as database, pytest.raises(ProfileFormatError, match=message):
        contents(database)


@pytest.mark.parametrize(
    ("column", "value"), [("tokens", 0), ("tokens", 3), ("gate_mass", b"1"), ("activations", b"12")]
)
def test_questions_are_not_asked_of_damaged_rows(planted, column, value) -> None:
    with sqlite3.connect(planted) as connection:
        connection.execute(f"UPDATE profile_counts SET {column} = ? WHERE segment = 3", (value,))
    connection.close()
    with pytest.raises(ProfileFormatError, match="The profile is damaged"):
        Profile.open(planted)


def test_tables_that_are_gone_are_missed(planted) -> None:
    with sqlite3.connect(planted) as connection:
        connection.execute("DROP TABLE profile_pairs")
    connection.close()
    with pytest.raises(ProfileFormatError, match="its tables profile_pairs are gone"):
        ProfileDatabase(planted)


def test_runs_that_contradict_each_other_are_refused(planted) -> None:
    with pytest.raises(ProfileIdentityError, match="has 5 experts, but it has 8 in other runs"):
        write_profile(planted, Router(layers=2, experts=5), {"code": 2}, run=run_facts(shapes(2, 5, 2)))
    assert Profile.open(planted).tokens
    other = run_facts(shapes(2, 5, 2), identity="other")
    write_profile(planted, Router(layers=2, experts=5), {"code": 2}, run=other)
    with sqlite3.connect(planted) as connection:
        connection.execute("UPDATE profile_runs SET identity = ?", (IDENTITY,))
    connection.close()
    with pytest.raises(ProfileFormatError, match="both are said to be of one model"):
        Profile.open(planted)


def as_nobody(work: Callable[[], list[str]]) -> list[str]:
    """What a function gives when a user calls it who owns nothing; as this user, unless it is root."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(writer, "\n".join(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        return pipe.read().splitlines()


def read_and_try_to_write(*places: Path) -> list[str]:
    lines = [str(Profile.open(places[0]).tokens)]
    for place in places:
        try:
            with ProfileDatabase(place, create=True) as database:
                database.add_run(run_facts())
        except ProfileError as error:
            lines.append(f"{type(error).__name__} {error}")
    return lines


def test_without_permission_to_write_a_profile_can_be_read(planted) -> None:
    # Not under pytest's folder, which others may not enter.
    folder = Path(tempfile.mkdtemp(prefix="coterie-readonly-"))
    try:
        shutil.copy(planted, folder / "p.db")
        (folder / "p.db").chmod(0o444)
        folder.chmod(0o555)
        tokens, first, second = as_nobody(lambda: read_and_try_to_write(folder / "p.db", folder / "new.db"))
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert tokens == str(48 * 64)
    assert first.startswith("ProfileWriteError")
    assert "is read-only" in first
    assert second.startswith("ProfileWriteError")
    assert "cannot be opened or made" in second


def test_a_full_disk_loses_nothing_that_was_written(tmp_path) -> None:
    segments, _ = recorded(Router(layers=4, experts=32, top_k=4), {"code": 16})
    run = run_facts(shapes(4, 32, 4))
    with ProfileDatabase(tmp_path / "p.db", create=True) as database:
        database.add_run(run)
        database.write_segment(run.uuid, segments[0])
        with database._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(ProfileWriteError, match="the disk is full"):
            write_all(database, run.uuid, segments[1:])
        written = len(database.digests(run.uuid))
        assert 1 <= written < len(segments)
        assert same_segments(list(database.segments(run.uuid)), segments[:written])
    # With room again, the same command goes on.
    with ProfileDatabase(tmp_path / "p.db") as database:
        write_all(database, run.uuid, segments)
        assert same_segments(list(database.segments(run.uuid)), segments)


def write_all(database: ProfileDatabase, uuid: str, segments: list[SegmentFacts]) -> None:
    for segment in segments:
        database.write_segment(uuid, segment)


def test_another_writer_is_waited_for_and_then_named(planted, monkeypatch) -> None:
    monkeypatch.setattr("coterie.profiles.connection.BUSY_TIMEOUT_S", 0.05)
    with ProfileDatabase(planted) as one, ProfileDatabase(planted) as two:
        run = one.runs()[0]
        with one.writing():
            # Readers go on meanwhile.
            assert two.runs() == [run]
            with pytest.raises(ProfileWriteError, match="is being written by another process"):
                two.add_run(run_facts())


def test_a_reader_sees_one_state(place) -> None:
    write_profile(place, Router(), {"code": 2})
    with ProfileDatabase(place) as one, ProfileDatabase(place) as two, one.reading() as connection:
        query = select(profile_tables.runs.c.uuid)
        before = connection.execute(query).all()
        two.add_run(run_facts())
        assert connection.execute(query).all() == before
        assert len(two.runs()) == 2


def test_writers_take_the_lock_first(planted) -> None:
    with ProfileDatabase(planted) as database, database.writing() as connection:
        assert connection.get_execution_options()[WRITING] is True


@pytest.mark.parametrize(
    ("where", "kind", "name"),
    [
        ("some/file.db", "file", "some/file.db"),
        ("sqlite:///some/file.db", "file", "some/file.db"),
        ("sqlite:////file.db", "file", "/file.db"),
        ("postgresql://me:secret@host:5/db", "postgresql", "postgresql://me:***@host:5/db"),
        ("postgres://host/db", "postgresql", "postgresql://host/db"),
        ("https://host:1/", "http", "https://host:1"),
    ],
)
def test_places(where, kind, name) -> None:
    location = locate(where)
    assert (location.kind, location.name) == (kind, name)


def test_places_of_other_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="mysql:// is not a place for profiles"):
        locate("mysql://host/db")
    with pytest.raises(UsageError, match="no address of a database"):
        locate("postgresql://host:port:x/db")
    with pytest.raises(UsageError, match="is another instance"):
        ProfileDatabase("http://host")


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ProfileConnectionError, match=r"does not answer") as caught:
        ProfileDatabase("postgresql://me:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


def test_a_database_that_is_not_there_is_named(postgresql_server) -> None:
    with pytest.raises(ProfileNotFoundError, match="createdb"):
        ProfileDatabase(f"postgresql://coterie@/nowhere?host={postgresql_server}")


def test_without_the_driver_the_way_to_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ProfileError, match=r"pip install 'psycopg\[binary\]>="):
        ProfileDatabase("postgresql://host/db")


def test_numbers_are_packed_in_the_order_that_the_page_says(planted) -> None:
    with ProfileDatabase(planted) as database, database.reading() as connection:
        row = connection.execute(select(profile_tables.counts)).first()
    assert row is not None
    assert np.frombuffer(row.activations, "<u4").sum() == 2 * row.tokens
    assert np.frombuffer(row.gate_mass, "<f8").sum() == pytest.approx(row.tokens)
