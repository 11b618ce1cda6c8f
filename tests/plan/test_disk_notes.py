"""What was found out about a disk is remembered, and nothing depends on that."""

import json
from pathlib import Path

import pytest

from coterie.errors import UsageError
from coterie.plan import disk_notes
from coterie.plan.disk import disk_identity
from coterie.plan.disk_notes import DiskNotes, forced_reads_at_once
from coterie.plan.queue_depth import ReadTuning, Trial
from coterie.records import LocalFile
from coterie.spec import Extent

RECORD = 9437184


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for the trial: finds 8 at once for small records, 2 for large ones; lists the memory given to it."""
    ran: list[int] = []

    def tune(extents: list[Extent], *, memory: int) -> ReadTuning:
        ran.append(memory)
        record = extents[0].nbytes
        trial = Trial(at_once=2, parts=1, lone=False, bytes_per_second=1.5e9)
        return ReadTuning(at_once=2 if record > 2**20 else 8, parts=2, record=record, trials=(trial,))

    monkeypatch.setattr(disk_notes, "tune_reads", tune)
    return ran


def ask(notes: DiskNotes, place: Path, record: int = RECORD, **options: bool) -> int:
    extents = [Extent(source=LocalFile(place), offset=0, nbytes=record)]
    note = notes.tuned(place, record, extents, memory=2**30, version="1", **options)
    assert note is not None
    return note.tuning.at_once


def test_a_disk_is_tried_once_for_each_size_of_record(tmp_path: Path, trials: list[int]) -> None:
    for _ in range(2):
        notes = DiskNotes(tmp_path / "new" / "disks.json")
        assert ask(notes, tmp_path) == 2
        assert ask(notes, tmp_path, RECORD - 8192) == 2
        assert ask(notes, tmp_path, 65536) == 8
    assert len(trials) == 2
    found = notes.find(tmp_path, RECORD)
    assert found is not None
    assert found.tuning == ReadTuning(
        at_once=2,
        parts=2,
        record=RECORD,
        trials=(Trial(at_once=2, parts=1, lone=False, bytes_per_second=1.5e9),),
    )
    assert found.version == "1"
    assert found.date.startswith("20")
    assert [note.tuning.record for note in notes.all_of(tmp_path)] == [65536, RECORD]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["disks.json"]


def test_it_is_tried_anew_when_asked(tmp_path: Path, trials: list[int]) -> None:
    notes = DiskNotes(tmp_path / "disks.json")
    ask(notes, tmp_path)
    ask(notes, tmp_path, anew=True)
    assert len(trials) == 2


def test_other_disks_are_other_disks(tmp_path: Path, trials: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    notes = DiskNotes(tmp_path / "disks.json")
    ask(notes, tmp_path)
    monkeypatch.setattr(disk_notes, "disk_identity", lambda place, root: "another")
    ask(notes, tmp_path)
    assert len(trials) == 2
    monkeypatch.undo()
    assert notes.find(tmp_path, RECORD) is not None


@pytest.mark.parametrize(
    "damage",
    [
        "", "{", "[]", "null", "7", '{"schema_version": 1}', '{"schema_version": 1, "disks": []}', "\x00" * 50,
        '{"schema_version": 1, "disks": {"IT": 3}}', '{"schema_version": 1, "disks": {"IT": {"8388608": 3}}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_measured_anew_and_mended(tmp_path: Path, trials: list[int], damage: str) -> None:
    path = tmp_path / "disks.json"
    path.write_text(damage.replace("IT", disk_identity(tmp_path)))
    assert ask(DiskNotes(path), tmp_path) == 2
    assert ask(DiskNotes(path), tmp_path) == 2
    assert len(trials) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"at_once": 0}, {"at_once": 65}, {"at_once": "2"}, {"at_once": None}, {"parts": 0}, {"parts": 3},
        {"record": -1}, {"date": 3}, {"version": None}, {"trials": [{}]}, {"trials": 5}, {"trials": [3]},
    ],
)  # fmt: skip
def test_a_note_that_makes_no_sense_is_none(tmp_path: Path, trials: list[int], change: dict[str, object]) -> None:
    path = tmp_path / "disks.json"
    ask(DiskNotes(path), tmp_path)
    content = json.loads(path.read_text())
    (sizes,) = content["disks"].values()
    (note,) = sizes.values()
    note.update(change)
    path.write_text(json.dumps(content))
    assert DiskNotes(path).find(tmp_path, RECORD) is None
    assert ask(DiskNotes(path), tmp_path) == 2
    assert len(trials) == 2


def test_another_version_of_the_trial_is_tried_anew(tmp_path: Path, trials: list[int]) -> None:
    path = tmp_path / "disks.json"
    ask(DiskNotes(path), tmp_path)
    content = json.loads(path.read_text())
    content["schema_version"] += 1
    path.write_text(json.dumps(content))
    assert DiskNotes(path).find(tmp_path, RECORD) is None


def test_where_nothing_can_be_kept_it_is_found_out_each_time(tmp_path: Path, trials: list[int]) -> None:
    (tmp_path / "file").write_text("in the way")
    notes = DiskNotes(tmp_path / "file" / "disks.json")
    assert [ask(notes, tmp_path), ask(notes, tmp_path)] == [2, 2]
    assert len(trials) == 2


def test_a_disk_that_cannot_be_read_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk_notes, "tune_reads", broken)
    notes = DiskNotes(tmp_path / "disks.json")
    assert notes.tuned(tmp_path, RECORD, [], memory=1, version="1") is None
    assert not (tmp_path / "disks.json").exists()


def test_they_lie_in_the_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trials: list[int]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ask(DiskNotes(), tmp_path)
    assert (tmp_path / "cache/coterie/disks.json").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    ask(DiskNotes(), tmp_path)
    assert (tmp_path / "home/.cache/coterie/disks.json").exists()


class TestForced:
    @pytest.mark.parametrize(("text", "number"), [("1", 1), (" 16 ", 16), ("64", 64), ("", None)])
    def test_a_number(self, monkeypatch: pytest.MonkeyPatch, text: str, number: int | None) -> None:
        monkeypatch.setenv("COTERIE_READS_AT_ONCE", text)
        assert forced_reads_at_once() == number

    @pytest.mark.parametrize("text", ["0", "65", "-1", "many", "1.5", "²"])
    def test_anything_else(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv("COTERIE_READS_AT_ONCE", text)
        with pytest.raises(UsageError, match="from 1 to 64"):
            forced_reads_at_once()
