"""``max_rate``: all that is read of a repository's files counts, and what reads them waits."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from checkpoint.conftest import REPO
from coterie.checkpoint.hub.downloads import download
from coterie.checkpoint.hub.repository import find_repository
from coterie.engine import load
from coterie.errors import UsageError
from coterie.evaluate.running import _with_rate
from coterie.extraction import extract
from coterie.planner.planning import forecast_for
from coterie.records.remote import RateLimit
from coterie.records.remote.attempts import Attempts
from coterie.spec.opening import Opening
from zoo import ZOO, logits

BF16 = torch.bfloat16
RATE = 10_000
BURST = RATE // 4
"""Bytes that may come at once before anyone waits."""


@dataclass
class Clock:
    """Time that passes only while somebody is held back, and the bytes that were counted."""

    now: float = 100.0
    taken: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pause(self, seconds: float, stopped: threading.Event) -> None:
        with self.lock:
            self.now += seconds

    def held(self, nbytes: int) -> bool:
        """Whether so many bytes have taken as long as they must."""
        return self.now - 100.0 + 1e-6 >= (nbytes - BURST) / RATE


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made, take = Clock(), RateLimit.take

    def counted(limit: RateLimit, nbytes: int, stopped: threading.Event) -> None:
        with made.lock:
            made.taken += nbytes
        take(limit, nbytes, stopped)

    monkeypatch.setattr("coterie.records.remote.rate.pause", made.pause)
    monkeypatch.setattr("coterie.records.remote.rate.time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(RateLimit, "take", counted)
    return made


@pytest.fixture
def checkpoint(publish, zoo_checkpoint) -> Path:
    """The directory behind the repository of a checkpoint."""
    directory: Path = zoo_checkpoint("qwen3_moe", BF16)
    publish(directory)
    return directory


def sent(hub) -> int:
    """Bytes of files of all kinds."""
    return sum(hub.fetched("").values())


def run(model) -> torch.Tensor:
    return logits(model, ZOO["qwen3_moe"].inputs(seed=0, batch=2))


@pytest.mark.parametrize("missing", [None, "fetch"])
def test_a_store_on_the_hub_comes_no_faster(missing, hub, zoo_store, publish, open_model, clock):
    publish(zoo_store("qwen3_moe"))
    model = open_model(REPO, missing=missing, max_rate="10KB/s")
    first = sent(hub)
    assert clock.taken == first > 0
    assert clock.held(first)
    run(model)
    assert (sent(hub) > first) == (missing == "fetch")
    assert clock.taken == sent(hub)
    assert clock.held(sent(hub))


def test_a_checkpoint_on_the_hub_comes_no_faster(hub, checkpoint, open_model, clock):
    open_model(REPO, max_rate=RATE)
    shards = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert shards < clock.taken <= sent(hub)  # headers are not read to the end of what is sent
    assert clock.held(clock.taken)


def test_what_a_partial_store_fetches_comes_no_faster(hub, checkpoint, tmp_path, open_model, clock):
    extract(REPO, tmp_path / "store", experts="0")
    assert clock.taken == 0
    model = open_model(tmp_path / "store", missing="fetch", max_rate="10KB/s")
    before = clock.taken
    run(model)
    fetched = model.coterie.stats().fetched
    assert clock.taken - before == fetched.nbytes > 0
    assert clock.held(clock.taken)


def test_whole_shards_of_an_extraction_come_no_faster(hub, checkpoint, tmp_path, clock):
    extract(REPO, tmp_path / "store", keep_download=True, max_rate="10KB/s")
    assert clock.taken > sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert clock.held(clock.taken)


def test_the_transport_that_cannot_be_held_back_is_not_used(hub, checkpoint, cache, monkeypatch, clock):
    from dataclasses import replace

    def unlimited(*_: Any) -> Path:
        raise AssertionError("the client downloads as fast as it likes")

    monkeypatch.setattr("coterie.checkpoint.hub.downloads._by_client", unlimited)
    monkeypatch.setattr("coterie.checkpoint.hub.downloads.find_spec", lambda name: object())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    found = find_repository(REPO)
    name = next(path.name for path in checkpoint.glob("*.safetensors"))
    assert found.listing is not None
    file = replace(found.listing.files[name], in_xet=True)
    arguments = found.cache, REPO, found.commit, file, Attempts(name), lambda nbytes: None
    with pytest.raises(AssertionError, match="as fast as it likes"):
        download(*arguments)
    path = download(*arguments, RateLimit(RATE))
    assert path.read_bytes() == (checkpoint / name).read_bytes()
    assert clock.taken == file.nbytes


def test_what_a_forecast_reads_counts(hub, checkpoint, clock):
    """`coterie bench` makes one before it opens the model."""
    forecast_for(REPO, max_rate="10KB/s")
    assert clock.taken > 0
    assert clock.held(clock.taken)


def test_calibration_is_told_of_the_rate(hub, checkpoint, tmp_path):
    """It opens the checkpoint, too."""
    told: dict[str, Any] = {}

    class Calibration:
        def of(self, model: str | Path, **options: Any) -> Any:
            told.update(options)
            raise UsageError("That is enough.")

    with pytest.raises(UsageError, match="enough"):
        extract(REPO, tmp_path / "store", scheme="int4", calibration=Calibration(), max_rate="10KB/s")
    assert told["max_rate"] == "10KB/s"


# --- where it could do nothing ----------------------------------------------------------------------------------------


def test_a_rate_of_what_is_here_is_refused(zoo_store, zoo_checkpoint, tmp_path):
    store, checkpoint = zoo_store("qwen3_moe"), zoo_checkpoint("qwen3_moe", BF16)
    for model in (store, checkpoint, "bundled"):
        with pytest.raises(UsageError, match=r"is on this machine.*Leave max_rate out"):
            load(model, max_rate="20MB/s")
    with pytest.raises(UsageError, match="is on this machine"):
        extract(checkpoint, tmp_path / "store", max_rate="20MB/s")
    assert not (tmp_path / "store").exists()
    extract(checkpoint, tmp_path / "store", experts="0")
    with pytest.raises(UsageError, match="is on this machine"):
        load(tmp_path / "store", missing="fetch", source=checkpoint, max_rate="20MB/s")


def test_a_store_that_has_become_complete_opens_as_before(zoo_store, open_model):
    """The command that made it grow stays what it was."""
    run(open_model(zoo_store("qwen3_moe"), missing="fetch", max_rate="20MB/s"))


@pytest.mark.parametrize(
    ("model", "against", "missing", "limited"),
    [
        (REPO, "someone/else", None, (True, True)),
        (REPO, "bundled", None, (True, False)),
        ("bundled", REPO, None, (False, True)),
        ("bundled", REPO, "fetch", (True, True)),
        # Nothing is on the Hub: opening the model says so.
        ("bundled", "bundled", None, (True, False)),
        ("bundled", None, None, (True, False)),
    ],
)
def test_of_two_models_that_are_compared_those_on_the_hub_are_limited(model, against, missing, limited):
    own, other = _with_rate(Opening(max_rate="20MB/s", missing=missing), model, against)
    assert (own.max_rate is not None, other.max_rate is not None) == limited
