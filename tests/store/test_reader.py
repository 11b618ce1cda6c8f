"""Opening stores: what is refused with which advice, and that opening reads no tensor bytes."""

from __future__ import annotations

import builtins
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coterie.errors import (
    ChecksumError,
    ExpertMissingError,
    ReadError,
    StoreFormatError,
    StoreNotFoundError,
    UsageError,
)
from coterie.records import RecordReader
from coterie.spec import ExpertKey, ExpertSource
from coterie.store import Store, StoreWriter, is_store
from odd_files import ODD, make_odd

from .tiny import INT4, NATIVE, SIDE_FILES, SMALL, TALKER, THINKER, make_plan, record_bytes, write_store


def test_every_record_reads_back(pristine_store: Path) -> None:
    source: ExpertSource = Store.open(pristine_store)
    assert len(source.keys()) == 17
    for key in source.keys():
        layout = source.layout(key)
        buffer = bytearray(layout.nbytes)
        assert source.read_into(key, memoryview(buffer)) == layout.nbytes
        assert buffer == record_bytes(key.bank_key, key.expert, layout)
        (extent,) = source.extents(key) or ()
        with extent.source.path.open("rb") as file:
            file.seek(extent.offset)
            assert file.read(extent.nbytes) == buffer


def test_layouts_schemes_and_banks(pristine_store: Path) -> None:
    store = Store.open(pristine_store)
    assert store.layout(THINKER.expert(0)) == NATIVE
    assert store.layout(THINKER.expert(2)) == INT4
    assert store.layout(TALKER.expert(0)) == SMALL
    assert [store.scheme(THINKER.expert(one)) for one in (1, 2)] == ["native", "int4"]
    assert store.banks[TALKER].weightless == (5,)
    assert store.manifest.is_complete
    assert store.manifest.expert_nbytes == 10 * 8192 + 7 * 4096
    assert [path.name for path in store.dense_files] == [f"dense-0000{one}-of-00002.safetensors" for one in (1, 2)]
    assert store.dense_index == pristine_store / "dense.safetensors.index.json"


def test_opening_reads_nothing_but_the_manifest_and_what_is_beside_the_weights(
    pristine_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    plain = os.open

    def watched(path: object, *args: int) -> int:
        opened.append(Path(str(path)).relative_to(pristine_store).as_posix())
        return plain(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "open", lambda *args, **kwargs: pytest.fail("nothing is opened by name"))
    monkeypatch.setattr(os, "open", watched)
    store = Store.open(pristine_store)
    assert store.checksum(THINKER.expert(0)) == store.record(THINKER.expert(0)).checksum
    assert opened == ["coterie.json", *sorted(SIDE_FILES)]


def test_reading_from_many_threads(pristine_store: Path) -> None:
    store = Store.open(pristine_store)

    def read(key: ExpertKey) -> bool:
        buffer = bytearray(store.layout(key).nbytes)
        store.read_into(key, memoryview(buffer))
        return bytes(buffer) == record_bytes(key.bank_key, key.expert, store.layout(key))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, list(store.keys()) * 4))


def test_absent_experts_are_named(tmp_path: Path) -> None:
    write_store(tmp_path, make_plan([0]))
    store = Store.open(tmp_path)
    assert not store.manifest.is_complete
    for key in (THINKER.expert(1), THINKER._replace(layer=9).expert(0)):
        for method in (store.layout, store.extents, store.checksum, store.scheme):
            with pytest.raises(ExpertMissingError, match=str(key)):
                method(key)


def test_a_wrong_buffer_is_refused(pristine_store: Path) -> None:
    store = Store.open(pristine_store)
    with pytest.raises(UsageError, match="A buffer of 4096 bytes is needed"):
        store.read_into(THINKER.expert(2), memoryview(bytearray(4095)))


def test_a_file_that_shrinks_after_opening_is_a_read_error(store: Path) -> None:
    opened = Store.open(store)
    path = opened.extents(TALKER.expert(4))[0].source.path
    os.truncate(path, 20_490)
    with pytest.raises(ReadError, match="written to after it was first opened"):
        opened.read_into(TALKER.expert(4), memoryview(bytearray(4096)))
    path.unlink()
    with pytest.raises(ReadError, match="cannot be read"):
        opened.read_into(TALKER.expert(4), memoryview(bytearray(4096)))


def test_what_is_not_a_store_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="There is no directory"):
        Store.open(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(StoreNotFoundError, match="is a file"):
        Store.open(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreNotFoundError, match="it is not a store"):
        Store.open(tmp_path / "empty")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/config.json").touch()
    (tmp_path / "checkpoint/model.safetensors").touch()
    with pytest.raises(StoreNotFoundError, match="is a checkpoint, not a store"):
        Store.open(tmp_path / "checkpoint")
    with StoreWriter.open(tmp_path / "unfinished", make_plan()):
        pass
    with pytest.raises(StoreNotFoundError, match=r"unfinished store.*again"):
        Store.open(tmp_path / "unfinished")
    assert not any(is_store(path) for path in tmp_path.iterdir())


def test_is_store(pristine_store: Path) -> None:
    assert is_store(pristine_store)
    assert is_store(str(pristine_store))
    assert not is_store("\0")


def test_a_missing_file_is_refused_at_open(store: Path) -> None:
    (store / "config.json").unlink()
    with pytest.raises(StoreFormatError, match="missing") as caught:
        Store.open(store)
    assert (caught.value.path, caught.value.rule) == (store / "config.json", "R20")


def test_a_side_file_of_other_bytes_is_refused(store: Path) -> None:
    (store / "config.json").write_bytes((store / "config.json").read_bytes().replace(b"tiny", b"tinY"))
    with pytest.raises(ChecksumError, match=r"config\.json differs from its checksum") as caught:
        Store.open(store)
    assert caught.value.path == store / "config.json"


def test_a_side_file_that_changes_after_opening_is_told(store: Path) -> None:
    opened = Store.open(store)
    opened.check_unchanged()
    swap(store / "tokenizer.json")
    with pytest.raises(ReadError, match=r"tokenizer\.json was replaced or written to"):
        opened.check_unchanged()


def swap(path: Path) -> None:
    """Another file with the same bytes and times takes the place of a file."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.replace(path)


@pytest.mark.parametrize("how", ["swapped", "written", "link", "gone", *ODD])
def test_a_record_is_read_from_the_file_that_was_opened_or_not_at_all(store: Path, tmp_path: Path, how: str) -> None:
    opened = Store.open(store)
    key = THINKER.expert(0)
    (extent,) = opened.extents(key)
    path = extent.source.path
    if how == "swapped":
        swap(path)
    elif how == "written":
        with path.open("r+b") as file:
            file.write(file.read(1))
        os.utime(path, ns=(1, 1))
    else:
        aside = tmp_path / "aside"
        path.rename(aside)
        if how == "link":
            path.symlink_to(aside)
        elif how in ODD:
            make_odd(how, path)
    record = memoryview(bytearray(extent.nbytes))
    with pytest.raises(ReadError) as caught:
        opened.read_into(key, record)
    assert str(path) in str(caught.value)
    reader = RecordReader(opened)
    with pytest.raises(ReadError) as caught:
        reader.read(key, opened.layout(key), record)
    assert str(path) in str(caught.value)
    reader.close()
