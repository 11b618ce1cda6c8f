"""Stores in repositories of the Hub: opened by their id, downloaded by files, compared with their manifest."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from coterie.checkpoint import Checkpoint
from coterie.engine import load
from coterie.errors import (
    CheckpointFileError,
    CheckpointNotFoundError,
    ChecksumError,
    DiskSpaceError,
    StoreError,
    StoreFormatError,
    UnsupportedError,
    UsageError,
)
from coterie.extraction import extract, quantize
from coterie.inspection import inspect, verify
from coterie.planner import plan
from coterie.store import Store
from zoo import ZOO, logits

from .conftest import REPO
from .hub import Fault

F32 = torch.float32


@pytest.fixture
def store(zoo_store, publish) -> Path:
    """The directory behind the repository of a store, with what a repository has beside it."""
    directory = zoo_store("qwen3_moe")
    publish(directory)
    return directory


@pytest.fixture
def copy(zoo_store, tmp_path) -> Path:
    """A store that may be changed."""
    return Path(shutil.copytree(zoo_store("qwen3_moe"), tmp_path / "copy"))


def an_expert_file(directory: Path) -> str:
    return next(path.relative_to(directory).as_posix() for path in sorted(directory.glob("experts/*/*.safetensors")))


def flip(path: Path, offset: int = -100) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def same(model, stock) -> bool:
    inputs = ZOO["qwen3_moe"].inputs()
    return torch.equal(logits(model, inputs), logits(stock, inputs))


def as_hub_cache(store: Path, root: Path) -> Path:
    """A snapshot as the Hub's clients make it: links into blobs; files of the repository beside the store's."""
    folder = root / "models--someone--store"
    snapshot = folder / "snapshots" / ("a" * 40)
    for number, path in enumerate(sorted(path for path in store.rglob("*") if path.is_file())):
        blob = folder / "blobs" / f"{number:064x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(store)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_store_is_opened_by_its_id_and_computes_the_same(hub, store, open_model, zoo_stock):
    model = open_model(REPO)
    assert same(model, zoo_stock("qwen3_moe"))
    assert model.coterie.source.name == REPO
    sent = hub.fetched()
    assert sent == {path.relative_to(store).as_posix(): path.stat().st_size for path in store.rglob("*.safetensors")}


def test_the_second_time_nothing_is_downloaded(hub, store, open_model):
    open_model(REPO)
    before = hub.fetched()
    open_model(REPO)
    assert hub.fetched() == before


def test_without_a_network_the_cache_is_enough(hub, store, open_model, monkeypatch, waits):
    open_model(REPO)
    asked = len(hub.asked)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    open_model(REPO)
    assert inspect(REPO).complete
    assert verify(REPO).ok
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    open_model(REPO, offline=True)
    hub.faults.append(Fault("status", "api", status=503))
    open_model(REPO)  # the Hub does not answer, and all is here
    assert len(hub.asked) == asked


def test_what_is_missing_without_a_network_is_named(hub, store, monkeypatch):
    inspect(REPO)
    with pytest.raises(CheckpointFileError, match=r"dense\.safetensors of someone/tiny-moe is not in the Hub's cache"):
        load(REPO, offline=True)


@pytest.mark.parametrize(
    "look", [inspect, lambda one: plan(one, memory="4GiB", measure=False)], ids=["inspect", "plan"]
)
def test_looking_downloads_headers_only(look, hub, store):
    found, local = look(REPO), look(store)
    assert sum(hub.fetched().values()) <= 100_001
    assert set(hub.fetched()) == {"dense.safetensors"}
    if look is inspect:
        assert found.banks == local.banks
        assert found.dense_nbytes == local.dense_nbytes
    else:
        assert found.working_set_nbytes == local.working_set_nbytes
        assert found.budgets[0].memory.dense_nbytes == local.budgets[0].memory.dense_nbytes


def test_a_revision_is_the_store_that_it_was_then(hub, publish, zoo_store, copy, tmp_path):
    publish(zoo_store("qwen3_moe"))
    quantize(copy, tmp_path / "small", scheme="int4")
    small = publish(tmp_path / "small", reference="small")
    for revision in ("small", small):
        assert inspect(REPO, revision=revision).banks[0].schemes == {"int4": 8}
    assert inspect(REPO).banks[0].schemes == {"native": 8}
    with pytest.raises(CheckpointNotFoundError, match="no revision 'large'"):
        inspect(REPO, revision="large")
    with pytest.raises(UsageError, match="only repositories of the Hub have revisions"):
        inspect(copy, revision="small")


@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo")])
def test_a_gated_store_says_what_to_do(status, code, hub, store, waits):
    hub.faults.append(Fault("status", "api", status=status, headers={"X-Error-Code": code}))
    with pytest.raises(CheckpointNotFoundError, match="hf auth login"):
        load(REPO)


def test_the_token_goes_to_the_hub_and_not_to_its_cdn(hub, store, open_model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    open_model(REPO)
    assert {asked.token for asked in hub.asked if asked.server == "hub"} == {"Bearer hf_secret"}
    assert {asked.token for asked in hub.asked if asked.server == "cdn"} == {None}


def test_a_checkpoint_is_needed_where_one_is(hub, store, tmp_path):
    for use in (Checkpoint.open, lambda one: extract(one, tmp_path / "other"), lambda one: verify(store, against=one)):
        with pytest.raises(UnsupportedError, match="someone/tiny-moe is a store, and a checkpoint is needed here"):
            use(REPO)
    assert not any(name.startswith("experts/") for name in hub.fetched())


def test_a_smaller_store_is_made_of_one_on_the_hub(hub, store, tmp_path):
    planned = quantize(REPO, tmp_path / "planned", scheme="int4", dry_run=True)
    assert set(hub.fetched()) == {"dense.safetensors"}  # a plan reads headers
    quantize(REPO, tmp_path / "hub", scheme="int4")
    assert planned.store_nbytes == quantize(store, tmp_path / "x", scheme="int4", dry_run=True).store_nbytes
    quantize(store, tmp_path / "local", scheme="int4")
    assert Store.open(tmp_path / "hub").manifest == Store.open(tmp_path / "local").manifest


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_download_that_was_stopped_goes_on(hub, store, monkeypatch, open_model):
    name = an_expert_file(store)
    size = (store / name).stat().st_size
    hub.faults.append(Fault("reset", f"GET cdn {name}", after=size // 2, count=1))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coterie.records.remote.attempts.pause", stop)
    with pytest.raises(KeyboardInterrupt):
        load(REPO)
    assert size // 2 <= hub.fetched()[name] < size
    open_model(REPO)
    assert hub.fetched()[name] == size  # no byte was sent twice
    assert verify(REPO).ok


def test_bytes_that_change_on_the_way_are_found(hub, store, waits):
    name = an_expert_file(store)
    hub.faults.append(Fault("corrupt", f"GET cdn {name}", after=5000))
    with pytest.raises(CheckpointFileError, match=rf"{name} of {REPO} arrived twice with other bytes"):
        load(REPO)


@pytest.mark.parametrize("name", ["experts", "dense.safetensors", "config.json"])
def test_a_store_that_was_published_damaged_is_found(name, hub, publish, copy, cache):
    name = an_expert_file(copy) if name == "experts" else name
    flip(copy / name)
    publish(copy)
    with pytest.raises(ChecksumError, match=name):
        load(REPO)
    with pytest.raises(ChecksumError, match=name):
        load(REPO)  # it is not taken for right the second time
    assert [problem.file for problem in verify(REPO).problems] == [name]


@pytest.mark.parametrize("change", ["gone", "short"])
def test_a_store_that_was_published_in_part_is_found_at_once(change, hub, publish, copy):
    path = copy / an_expert_file(copy)
    if change == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 4096)
    publish(copy)
    with pytest.raises(StoreError, match=rf"is not whole: {path.relative_to(copy)} (is not there|has [0-9,]+ bytes)"):
        load(REPO)
    assert hub.fetched() == {}


def test_a_full_disk_is_named_before_anything_large_is_downloaded(hub, store, monkeypatch):
    inspect(REPO)
    usage = shutil.disk_usage(store)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(DiskSpaceError, match="HF_HOME"):
        load(REPO)
    assert not any(name.startswith("experts/") for name in hub.fetched())


def test_a_store_in_the_cache_is_not_written_to(hub, cache, publish, zoo_store, zoo_checkpoint, open_model):
    publish(zoo_store("qwen3_moe", experts=[0, 1]))
    open_model(REPO, missing="mask")
    (snapshot,) = cache.glob("*/snapshots/*")
    with pytest.raises(StoreError, match="is in the Hub's cache, where a store stays as it was published"):
        extract(zoo_checkpoint("qwen3_moe", F32), snapshot)


# --- directories of the Hub's clients ---------------------------------------------------------------------------------


def test_links_of_the_hubs_cache_are_understood(zoo_store, tmp_path, open_model, zoo_stock):
    snapshot = as_hub_cache(zoo_store("qwen3_moe"), tmp_path)
    (snapshot / ".gitattributes").write_text("*.safetensors filter=lfs")
    (snapshot / "pictures").mkdir()
    (snapshot / "pictures" / "one.png").write_bytes(b"x")
    assert inspect(snapshot).complete
    assert verify(snapshot).problems == ()
    assert same(open_model(snapshot), zoo_stock("qwen3_moe"))


def test_links_that_lead_elsewhere_are_refused(zoo_store, tmp_path):
    snapshot = as_hub_cache(zoo_store("qwen3_moe"), tmp_path)
    name = an_expert_file(snapshot)
    outside = tmp_path / "outside"
    shutil.copy(snapshot / name, outside)
    for target in (outside, snapshot.parents[1] / "snapshots" / "other", snapshot.parents[1] / "blobs"):
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(target)
        with pytest.raises(StoreFormatError, match="R20"):
            Store.open(snapshot)
        assert name in {problem.file for problem in verify(snapshot).problems}
    blob = snapshot.parents[1] / "blobs" / "linked"
    blob.symlink_to(outside)  # a content is a file, and no link to one
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(blob)
    with pytest.raises(StoreFormatError, match="R20"):
        Store.open(snapshot)


def test_links_are_refused_where_no_client_of_the_hub_made_them(zoo_store, tmp_path):
    snapshot = as_hub_cache(zoo_store("qwen3_moe"), tmp_path)
    plain = snapshot.parents[1].rename(tmp_path / "plain") / "snapshots" / snapshot.name
    with pytest.raises(StoreError):
        Store.open(plain)


def test_a_damaged_content_of_the_cache_is_found(zoo_store, tmp_path):
    snapshot = as_hub_cache(zoo_store("qwen3_moe"), tmp_path)
    name = an_expert_file(snapshot)
    flip((snapshot / name).resolve())
    (problem,) = verify(snapshot).problems
    assert (problem.kind, problem.file, problem.rule) == ("corrupt", name, "R27")


def test_notes_of_a_download_are_no_error(copy):
    notes = copy / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text("x")
    (copy / ".gitattributes").write_text("x")
    (copy / "README.md").write_text("a card")
    assert verify(copy).problems == ()
    assert inspect(copy).complete


@pytest.mark.parametrize("name", ["model.safetensors", "experts/text/other.safetensors", "run.py"])
def test_weights_and_code_beside_a_store_stay_an_error(name, copy):
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    (copy / name).write_bytes(b"x")
    assert [problem.file for problem in verify(copy).problems] == [name]


def test_other_files_are_an_error_where_no_download_was(copy):
    (copy / "README.md").write_text("a card")
    assert [problem.file for problem in verify(copy).problems] == ["README.md"]


def test_a_cached_file_beside_the_manifest_is_read_as_json(hub, store):
    found = inspect(REPO)
    assert json.loads(json.dumps(found.to_json()))["model"]["model"] == REPO
