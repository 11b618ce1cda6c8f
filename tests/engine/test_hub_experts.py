"""Stores on the Hub of which only the experts come that routers ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from checkpoint.conftest import REPO, cache, hub, publish, waits  # noqa: F401
from checkpoint.hub import Fault
from coterie.engine import load
from coterie.errors import CheckpointFileError, ChecksumError, UsageError
from coterie.inspection import verify
from coterie.store import Store
from zoo import ZOO, logits


@pytest.fixture
def store(zoo_store, publish) -> Path:  # noqa: F811
    """The directory behind the repository."""
    directory: Path = zoo_store("qwen3_moe")
    publish(directory)
    return directory


def experts_sent(hub) -> int:  # noqa: F811
    return sum(sent for name, sent in hub.fetched().items() if name.startswith("experts/"))


def step(model) -> torch.Tensor:
    """The logits of one token, which takes few experts."""
    inputs = {name: tensor[:1, :1] for name, tensor in ZOO["qwen3_moe"].inputs().items()}
    return logits(model, inputs)


def whole(model) -> torch.Tensor:
    return logits(model, ZOO["qwen3_moe"].inputs())


def record_nbytes(store: Path) -> int:
    opened = Store.open(store)
    return opened.record(next(iter(opened.keys()))).nbytes


def test_only_what_the_router_asks_for_comes(hub, store, open_model, zoo_stock):  # noqa: F811
    model = open_model(REPO, missing="fetch")
    assert experts_sent(hub) == 0
    assert torch.equal(step(model), step(zoo_stock("qwen3_moe")))
    fetched = model.coterie.stats().fetched
    assert 0 < fetched.experts < len(Store.open(store).keys())
    assert experts_sent(hub) == fetched.nbytes == fetched.experts * record_nbytes(store)


def test_the_second_run_fetches_nothing(hub, store, open_model, zoo_stock, monkeypatch):  # noqa: F811
    first = open_model(REPO, missing="fetch")
    step(first)
    first.coterie.close()
    sent = experts_sent(hub)
    second = open_model(REPO, missing="fetch")
    assert torch.equal(step(second), step(zoo_stock("qwen3_moe")))
    assert second.coterie.stats().fetched.experts == 0
    assert experts_sent(hub) == sent
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    third = open_model(REPO, missing="fetch")
    assert torch.equal(step(third), step(zoo_stock("qwen3_moe")))
    with pytest.raises(CheckpointFileError, match="nothing may be downloaded"):
        whole(third)


def test_what_was_fetched_is_not_downloaded_again(hub, store, open_model, zoo_stock, cache):  # noqa: F811
    model = open_model(REPO, missing="fetch")
    step(model)
    model.coterie.close()
    model = open_model(REPO)
    assert torch.equal(whole(model), whole(zoo_stock("qwen3_moe")))
    sizes = {path.relative_to(store).as_posix(): path.stat().st_size for path in store.glob("experts/*/*")}
    assert {name: sent for name, sent in hub.fetched().items() if name in sizes} == sizes
    assert verify(REPO).ok
    assert not [path for path in cache.rglob("*") if ".part" in path.name]


def test_a_process_that_is_killed_loses_nothing(hub, store, open_model, zoo_stock):  # noqa: F811
    model = open_model(REPO, missing="fetch")
    step(model)
    sent = experts_sent(hub)
    other = open_model(REPO, missing="fetch")  # the first one was not closed
    assert torch.equal(step(other), step(zoo_stock("qwen3_moe")))
    assert experts_sent(hub) == sent


def test_bytes_that_a_power_cut_took_are_fetched_again(hub, store, open_model, zoo_stock, cache):  # noqa: F811
    model = open_model(REPO, missing="fetch")
    step(model)
    sent = experts_sent(hub)
    for path in cache.rglob("*.part"):
        size = path.stat().st_size
        os.truncate(path, 0)
        os.truncate(path, size)
    other = open_model(REPO, missing="fetch")
    assert torch.equal(step(other), step(zoo_stock("qwen3_moe")))
    assert experts_sent(hub) == 2 * sent


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_a_connection_that_breaks_goes_on(kind, hub, store, open_model, zoo_stock, waits):  # noqa: F811
    hub.faults.append(Fault(kind, "GET cdn experts", after=1000, count=3))
    model = open_model(REPO, missing="fetch")
    assert torch.equal(step(model), step(zoo_stock("qwen3_moe")))


def test_a_wrong_byte_is_never_used_or_kept(hub, publish, zoo_store, tmp_path, open_model, waits):  # noqa: F811
    import shutil

    damaged = Path(shutil.copytree(zoo_store("qwen3_moe"), tmp_path / "damaged"))
    manifest = Store.open(damaged).manifest
    for segment, record in manifest.places.values():
        content = bytearray((damaged / segment.file).read_bytes())
        content[record.offset] ^= 1
        (damaged / segment.file).write_bytes(content)
    publish(damaged)
    model = open_model(REPO, missing="fetch")
    with pytest.raises(ChecksumError, match=r"came twice with other bytes than the manifest says"):
        step(model)
    assert model.coterie.stats().fetched.experts == 0


def test_a_full_disk_is_said_once_and_the_model_goes_on(
    hub,  # noqa: F811
    store,
    open_model,
    zoo_stock,
    monkeypatch,
    caplog,
):
    def full(self, offset, data):
        raise OSError(28, "No space left on device")

    model = open_model(REPO, missing="fetch")
    monkeypatch.setattr("coterie.files.sparse.SparseFile.keep", full)
    assert torch.equal(whole(model), whole(zoo_stock("qwen3_moe")))
    told = [one for one in caplog.records if "cannot be kept in the Hub's cache" in one.message]
    assert 1 <= len(told) <= 2  # each file of experts says it once


def test_a_store_that_lacks_experts_does_not_grow_in_the_cache(hub, publish, zoo_store):  # noqa: F811
    publish(zoo_store("qwen3_moe", experts=[0, 1]))
    with pytest.raises(UsageError, match="a store in the Hub's cache does not grow"):
        load(REPO, missing="fetch")


def test_one_component_fetches_its_own(hub, publish, zoo_store, open_model):  # noqa: F811
    publish(zoo_store("qwen3_omni"))
    model = open_model(REPO, component="thinker", missing="fetch")
    logits(model, ZOO["qwen3_omni"].inputs())
    names = {name for name, sent in hub.fetched().items() if name.startswith("experts/") and sent}
    assert names
    assert all(name.startswith("experts/thinker/") for name in names)
