"""Extraction stopped at any moment: nothing half-written is a store, and resumed it is the undisturbed one."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coterie.checkpoint import Checkpoint
from coterie.errors import (
    CheckpointFileError,
    CoterieError,
    DiskSpaceError,
    ExtractionError,
    StoreBusyError,
    StoreError,
    StoreNotFoundError,
)
from coterie.extraction import extract
from coterie.inspection import verify
from coterie.store import Store, StoreWriter, is_store
from store.faults import EVERY, FailingCalls, Killed, KillingCalls, ShortWrites, WatchedCalls

from .stores import snapshot


@pytest.fixture
def fresh(moe: Path, tmp_path: Path) -> dict[str, bytes | None]:
    extract(moe, tmp_path / "fresh", experts="0-5")
    return snapshot(tmp_path / "fresh")


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("mode", ["kill", "full"])
def test_stopped_at_every_change_of_the_disk(
    mode: str, every: int, moe: Path, tmp_path: Path, fresh: dict[str, bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Opening the checkpoint anew for each of a hundred runs is not what this is about.
    opened = Checkpoint.open(moe)
    monkeypatch.setattr(Checkpoint, "open", lambda *_args, **_options: opened)
    counted = WatchedCalls()
    extract(moe, tmp_path / "counted", experts="0-5", workers=1, calls=counted)
    assert counted.count > 40
    for at in range(0, counted.count, every):
        path = tmp_path / f"store-{at}"
        failing = KillingCalls(at) if mode == "kill" else FailingCalls(at, errno.ENOSPC)
        with pytest.raises(Killed if mode == "kill" else DiskSpaceError):
            extract(moe, path, experts="0-5", workers=1, calls=failing)
        if not is_store(path) and path.exists():
            with pytest.raises(StoreNotFoundError):
                Store.open(path)
        extract(moe, path, experts="0-5", calls=WatchedCalls())
        assert snapshot(path) == fresh, at
        shutil.rmtree(path)


def test_finished_layers_are_not_read_again(moe: Path, tmp_path: Path, fresh: dict[str, bytes | None]) -> None:
    path = tmp_path / "store"

    class FullAtSecondBank(WatchedCalls):
        def before(self, index: int, name: str, arguments: tuple) -> None:
            if name == "create" and "layer-001" in arguments[0].name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskSpaceError, match="same command again: what is finished is kept"):
        extract(moe, path, experts="0-5", workers=1, calls=FullAtSecondBank())
    assert (path / "experts/text/mlp-layer-000.safetensors").exists()
    with pytest.raises(StoreNotFoundError, match="unfinished"):
        Store.open(path)
    record = Checkpoint.open(moe).banks
    report = extract(moe, path, experts="0-5")
    assert report.status == "resumed"
    assert report.written_nbytes == 6 * next(iter(record.values())).layout.nbytes
    present = {file.file for file in report.files if file.present}
    assert present == {"dense.safetensors", "experts/text/mlp-layer-000.safetensors"}
    assert snapshot(path) == fresh


def test_an_unfinished_store_takes_no_other_request_unless_it_may_be_discarded(moe: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with pytest.raises(Killed):
        extract(moe, path, experts="0-1", workers=1, calls=KillingCalls(30))
    before = snapshot(path)
    with pytest.raises(StoreError, match=r"begun with another plan: the experts differ.*--restart"):
        extract(moe, path, experts="0-2")
    with pytest.raises(StoreError, match="begun with another plan"):
        extract(moe, path, experts="0-2", dry_run=True)
    assert snapshot(path) == before
    assert extract(moe, path, experts="0-2", restart=True).status == "written"
    extract(moe, tmp_path / "fresh", experts="0-2")
    assert snapshot(path) == snapshot(tmp_path / "fresh")


def test_a_source_that_changed_in_between_is_not_mixed(moe: Path, tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "store"
    shutil.copytree(moe, source)
    with pytest.raises(Killed):
        extract(source, path, workers=1, calls=KillingCalls(30))
    flip(source / "model.safetensors", -10)
    with pytest.raises(StoreError, match="begun with another plan: the source differ"):
        extract(source, path)


def test_a_grown_store_needs_the_same_source(moe: Path, tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "store"
    shutil.copytree(moe, source)
    extract(source, path, experts="0")
    flip(source / "model.safetensors", -10)
    with pytest.raises(StoreError, match="that checkpoint differs from this one"):
        extract(source, path, experts="1")


def test_a_source_that_changes_meanwhile_gives_no_store(moe: Path, tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "store"
    shutil.copytree(moe, source)

    def touch(progress: object) -> None:
        os.utime(source / "model.safetensors", ns=(1, 1))

    with pytest.raises(CheckpointFileError, match=r"model\.safetensors.* was written to after it was first opened"):
        extract(source, path, progress=touch)
    assert not is_store(path)


def test_a_source_that_changes_after_the_last_read_gives_no_store(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = tmp_path / "source", tmp_path / "store"
    shutil.copytree(moe, source)
    copy = StoreWriter.copy_file

    def touch(self: StoreWriter, origin: Path, name: str) -> None:
        os.utime(source / "model.safetensors", ns=(1, 1))
        copy(self, origin, name)

    monkeypatch.setattr(StoreWriter, "copy_file", touch)
    with pytest.raises(ExtractionError, match="changed while it was being read"):
        extract(source, path)
    assert not is_store(path)


@pytest.mark.parametrize("what", ["expert", "dense"])
def test_a_shard_cut_off_meanwhile_is_named(what: str, moe: Path, tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "store"
    shutil.copytree(moe, source)
    shard = source / "model.safetensors"
    tensors = Checkpoint.open(source).tensors
    name = "model.norm.weight" if what == "dense" else "model.layers.1.mlp.experts.7.up_proj.weight"
    whole = shard.read_bytes()

    def cut(progress: object) -> None:
        if shard.stat().st_size == len(whole):
            os.truncate(shard, tensors[name].offset + 1)

    with pytest.raises(CheckpointFileError, match=r"model\.safetensors"):
        extract(source, path, progress=cut, workers=1)
    assert not is_store(path)
    assert verify(source).problems[0].kind == "malformed"
    shard.write_bytes(whole)
    extract(source, path)
    extract(source, tmp_path / "fresh")
    assert snapshot(path) == snapshot(tmp_path / "fresh")


def test_a_second_writer_is_refused_with_the_process(moe: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    found: list[str] = []

    def again(progress: object) -> None:
        if not found:
            found.append("")
            with pytest.raises(StoreBusyError, match=f"being written by another process .id {os.getpid()}"):
                extract(moe, path)
            found.append("refused")

    extract(moe, path, progress=again)
    assert found == ["", "refused"]


def test_no_permission_names_the_directory(moe: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be written: Permission denied.*writable"):
        extract(moe, tmp_path / "store", calls=FailingCalls(0, errno.EACCES))


def test_killed_while_two_banks_are_open(moe: Path, tmp_path: Path, fresh: dict[str, bytes | None]) -> None:
    counted = WatchedCalls()
    extract(moe, tmp_path / "counted", experts="0-5", workers=4, calls=counted)
    for at in range(5, counted.count, 7):
        path = tmp_path / f"store-{at}"
        with pytest.raises(Killed):
            extract(moe, path, experts="0-5", workers=4, calls=KillingCalls(at))
        extract(moe, path, experts="0-5", workers=4, calls=WatchedCalls())
        assert snapshot(path) == fresh, at


def test_killed_while_writing_past_the_page_cache(
    moe: Path, tmp_path: Path, fresh: dict[str, bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.store.disk.DIRECT_BYTES", 0)
    counted = WatchedCalls()
    extract(moe, tmp_path / "counted", experts="0-5", workers=1, calls=counted)
    assert snapshot(tmp_path / "counted") == fresh
    for at in range(20, counted.count, 3):
        path = tmp_path / f"store-{at}"
        with pytest.raises(Killed):
            extract(moe, path, experts="0-5", workers=1, calls=KillingCalls(at))
        extract(moe, path, experts="0-5", calls=WatchedCalls())
        assert snapshot(path) == fresh, at


def test_short_writes_past_the_page_cache(
    moe: Path, tmp_path: Path, fresh: dict[str, bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coterie.store.disk.DIRECT_BYTES", 0)
    extract(moe, tmp_path / "store", experts="0-5", calls=ShortWrites())
    assert snapshot(tmp_path / "store") == fresh


def test_a_writer_with_the_plan_is_not_left_locked(moe: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    with pytest.raises(CoterieError):
        extract(moe, path, workers=1, calls=FailingCalls(25, errno.EIO))
    assert not (path / ".coterie.lock").exists()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


WORKER = """
import sys
from coterie.extraction import extract
print("ready", flush=True)
extract(sys.argv[1], sys.argv[2], workers=3)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from synthetic import Dimensions, write_checkpoint

    shape = Dimensions(layers=6, experts=16, hidden=512, expert_hidden=256, heads=4, kv_heads=2, vocabulary=2048)
    source = write_checkpoint(tmp_path / "source", shape)
    start = time.monotonic()
    extract(source, tmp_path / "fresh")
    duration = time.monotonic() - start
    expected = snapshot(tmp_path / "fresh")
    chance = random.Random(1)
    path, kills = tmp_path / "store", 0
    while kills < 6:
        process = subprocess.Popen([sys.executable, "-c", WORKER, source, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.uniform(0, 1.2 * duration))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        if is_store(path):
            assert all(problem.kind == "foreign" for problem in verify(path).problems)
            shutil.rmtree(path)
    assert extract(source, path).status in ("resumed", "written")
    assert snapshot(path) == expected
