import os
from pathlib import Path

import pytest

from coterie.cli import catalog
from coterie.cli.catalog import examine, find_store, list_stores, remove_store
from coterie.errors import StoreBusyError, StoreError, StoreFormatError, StoreNotFoundError
from coterie.store import Store, StoreWriter
from store.tiny import make_plan, write_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one store of every state, and things that are none."""
    write_store(tmp_path / "full")
    write_store(tmp_path / "some", make_plan([0, 1]))
    StoreWriter.open(tmp_path / "begun", make_plan()).close()
    write_store(tmp_path / "torn")
    next((tmp_path / "torn").glob("experts/thinker/*.safetensors")).write_bytes(b"")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    return tmp_path


def test_states_and_counts(folder: Path) -> None:
    entries = {entry.name: entry for entry in list_stores(folder)}
    assert {name: entry.state for name, entry in entries.items()} == {
        "full": "complete", "some": "partial", "begun": "unfinished", "torn": "damaged",
    }  # fmt: skip
    assert (entries["full"].experts_present, entries["full"].experts_total) == (17, 17)
    assert (entries["some"].experts_present, entries["some"].experts_total) == (6, 17)
    assert entries["full"].model == "TinyForCausalLM"
    assert entries["full"].source == "org/tiny"
    assert entries["begun"].experts_total is None
    assert "R20" in (entries["torn"].problem or "")


def test_size_is_that_of_all_files(folder: Path) -> None:
    files = [path for path in (folder / "full").rglob("*") if path.is_file()]
    assert examine(folder / "full").nbytes == sum(path.stat().st_size for path in files)


def test_a_folder_that_is_not_there_has_no_stores(tmp_path: Path) -> None:
    assert list_stores(tmp_path / "nowhere") == []


def test_a_folder_that_is_itself_a_store_is_listed(folder: Path) -> None:
    assert [entry.name for entry in list_stores(folder / "full")] == ["full"]


def test_found_by_name_and_by_path(folder: Path, tmp_path: Path) -> None:
    assert find_store(folder, "some").path == folder / "some"
    assert find_store(folder / "other", str(folder / "some")).path == folder / "some"


def test_an_unknown_name_suggests_the_nearest(folder: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="Did you mean 'full'"):
        find_store(folder, "ful")
    with pytest.raises(StoreNotFoundError, match="There is no store in"):
        find_store(folder / "other", "full")


@pytest.mark.parametrize("name", ["full", "some", "begun", "torn"])
def test_removal_takes_the_whole_store_and_nothing_else(folder: Path, name: str) -> None:
    others = {path.name for path in folder.iterdir()} - {name}
    remove_store(find_store(folder, name))
    assert {path.name for path in folder.iterdir()} == others


def test_a_store_with_a_broken_manifest_can_be_removed(folder: Path) -> None:
    (folder / "full" / "coterie.json").write_text("{")
    entry = find_store(folder, "full")
    assert entry.state == "damaged"
    remove_store(entry)
    assert not (folder / "full").exists()


def test_what_an_interrupted_growth_left_is_removed_with_the_store(folder: Path) -> None:
    for name in (".coterie.journal", ".coterie.received", "experts/thinker/mlp-layer-000.1.safetensors"):
        (folder / "some" / name).write_text("half")
    remove_store(find_store(folder, "some"))
    assert not (folder / "some").exists()


@pytest.mark.parametrize("name", ["notes.txt", "experts/mine.bin"])
def test_foreign_files_stop_the_removal_before_it_begins(folder: Path, name: str) -> None:
    (folder / "full" / name).write_text("mine")
    with pytest.raises(StoreError, match=f"such as '{name}'"):
        remove_store(find_store(folder, "full"))
    Store.open(folder / "full")
    assert (folder / "full" / name).read_text() == "mine"


def test_what_an_interrupted_writer_keeps_for_itself_is_removed_with_the_store(folder: Path) -> None:
    (folder / "begun" / ".coterie.received").write_text("half")
    (folder / "begun" / ".coterie.calibration").mkdir()
    (folder / "begun" / ".coterie.calibration" / "layer").write_text("half")
    remove_store(find_store(folder, "begun"))
    assert not (folder / "begun").exists()


def test_foreign_weights_in_an_unfinished_store_stop_the_removal(folder: Path) -> None:
    (folder / "begun" / "model.safetensors").write_text("mine")
    with pytest.raises(StoreError, match=r"model\.safetensors"):
        remove_store(find_store(folder, "begun"))
    assert (folder / "begun" / "model.safetensors").exists()


def test_a_link_is_not_followed(folder: Path) -> None:
    with pytest.raises(StoreError, match="is a link"):
        remove_store(examine(folder / "link"))
    Store.open(folder / "full")


def test_files_behind_a_link_survive(folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (folder / "full" / "extra").symlink_to(precious)
    with pytest.raises(StoreError, match="extra"):
        remove_store(find_store(folder, "full"))
    assert (precious / "file").read_text() == "mine"


def test_a_store_that_is_being_written_is_not_removed(folder: Path) -> None:
    with (
        StoreWriter.open(folder / "some", make_plan([0, 1, 2])),
        pytest.raises(StoreBusyError, match="written by another process"),
    ):
        remove_store(find_store(folder, "some"))
    assert (folder / "some" / "coterie.json").exists()


def test_interrupted_removal_is_never_a_store_and_can_be_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = len([path for path in (folder / "full").rglob("*") if path.is_file()])
    real = Path.unlink

    def unlink_only(count: int) -> None:
        """Lets so many files be removed and no more."""
        left = iter(range(count))

        def unlink(self: Path, missing_ok: bool = False) -> None:
            if self.name != ".coterie.lock" and next(left, None) is None:
                raise PermissionError(13, "Permission denied", str(self))
            real(self, missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)

    for count in range(1, total):
        path = folder / f"copy-{count}"
        write_store(path)
        unlink_only(count)
        with pytest.raises(StoreError, match="cannot be removed: Permission denied"):
            remove_store(examine(path))
        monkeypatch.undo()
        with pytest.raises((StoreFormatError, StoreNotFoundError)):
            Store.open(path)
        assert examine(path).state == "damaged"
        remove_store(examine(path))
        assert not os.path.lexists(path)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(catalog.Path, "iterdir", refuse)
    with pytest.raises(catalog.UsageError, match="cannot be listed: Permission denied"):
        list_stores(tmp_path)
