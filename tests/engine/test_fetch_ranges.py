"""``missing="fetch"`` of a store that was made from the Hub: an expert costs its own bytes, once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from checkpoint.conftest import REPO
from checkpoint.hub import Fault
from coterie.checkpoint import Checkpoint
from coterie.engine.fetched_records import FetchedRecords
from coterie.errors import CheckpointFileError
from coterie.extraction import extract
from coterie.inspection import verify
from coterie.spec import BankKey
from coterie.store import Store
from zoo import ZOO, logits

BF16 = torch.bfloat16
KEY = BankKey("text", 0, "mlp").expert(3)


@pytest.fixture
def published(publish, zoo_checkpoint) -> Path:
    directory: Path = zoo_checkpoint("qwen3_moe", BF16)
    publish(directory)
    return directory


@pytest.mark.parametrize(("scheme", "experts"), [(None, "none"), ("int4", "0")])
def test_an_expert_costs_its_own_bytes_and_comes_once(
    scheme, experts, hub, published, tmp_path, open_model, zoo_stock, cache
):
    stock, store = zoo_stock("qwen3_moe", BF16), tmp_path / "store"
    extract(REPO, store, experts=experts, scheme=scheme)
    hub.fetched()
    hub.asked.clear()
    model = open_model(store, missing="fetch", expert_memory="25%")
    inputs = ZOO["qwen3_moe"].inputs(seed=0, batch=2)
    found = logits(model, inputs)
    if scheme is None:
        assert torch.equal(found, logits(stock, inputs))
    fetched = model.coterie.stats().fetched
    assert fetched.experts > 8
    model.coterie.close()
    # Headers are asked for by their first 100 kB.
    ranges = [asked for asked in hub.asked if asked.server == "cdn" and not asked.asked_range.startswith("bytes=0-")]
    local = Checkpoint.open(published)
    each = sum(info.nbytes for name, info in local.tensors.items() if ".experts.0." in name) // len(local.banks)
    assert each * fetched.experts <= sum(asked.sent for asked in ranges) <= 1.1 * each * fetched.experts
    assert len({asked.asked_range + asked.file for asked in ranges}) == len(ranges)
    assert len(ranges) == fetched.experts
    assert not list(cache.rglob("*.safetensors"))
    assert verify(store, against=published).problems == ()
    assert len(Store.open(store).keys()) >= fetched.experts
    hub.asked.clear()
    again = open_model(store, missing="fetch", expert_memory="25%")
    assert torch.equal(logits(again, inputs), found)
    assert again.coterie.stats().fetched.experts == 0
    again.coterie.close()
    assert all(asked.asked_range.startswith("bytes=0-") for asked in hub.asked if asked.server == "cdn")


def test_what_cannot_be_fetched_is_an_error_that_names_the_file(hub, published, tmp_path, open_model, monkeypatch):
    monkeypatch.setattr("coterie.records.remote.attempts.pause", lambda wait, stopped: None)
    store = tmp_path / "store"
    extract(REPO, store, experts="0")
    model = open_model(store, missing="fetch", expert_memory="25%")
    hub.faults.append(Fault("status", "cdn", status=503))
    with pytest.raises(CheckpointFileError, match=rf"model\S+ of {REPO} could not be read .*answered 503"):
        logits(model, ZOO["qwen3_moe"].inputs(seed=0, batch=2))
    model.coterie.close()
    assert verify(store, against=published).problems == ()


def test_records_are_kept_until_they_are_let_go(tmp_path):
    records = FetchedRecords(tmp_path)
    other = BankKey("text", 1, "mlp").expert(3)
    records.put(KEY, memoryview(b"first"))
    records.put(other, memoryview(b"second one"))
    buffer = memoryview(bytearray(10))
    assert records.read(other, buffer)
    assert bytes(buffer) == b"second one"
    assert records.read(KEY, buffer[:5])
    assert bytes(buffer[:5]) == b"first"
    records.forget({KEY})
    assert not records.read(KEY, buffer)
    assert records.read(other, buffer)
    records.forget({other})
    records.put(KEY, memoryview(b"third"))
    assert records.read(KEY, buffer[:5])
    assert bytes(buffer[:5]) == b"third"
    records.close()
    records.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_nothing_and_is_no_error(tmp_path, monkeypatch):
    def full(**options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("coterie.engine.fetched_records.tempfile.TemporaryFile", full)
    records = FetchedRecords(tmp_path)
    records.put(KEY, memoryview(b"first"))
    assert not records.read(KEY, memoryview(bytearray(5)))
    records.close()
