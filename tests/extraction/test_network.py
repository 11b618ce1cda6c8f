"""Stores made of a repository by ranges: the same bytes, no shard on the disk, and nothing wrong that passes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoint.conftest import REPO, cache, hub, publish, text, waits  # noqa: F401 - fixtures
from checkpoint.hub import Fault
from coterie.checkpoint import Checkpoint
from coterie.cli import main
from coterie.errors import CheckpointFileError, StoreNotFoundError, UsageError
from coterie.extraction import Progress, extract, shard_checks
from coterie.extraction.received import ReceivedList, UsedRange
from coterie.inspection import verify
from coterie.store import Store, names

BF16 = torch.bfloat16
_KINDS: dict[str, dict[str, str]] = {
    "native": {},
    "int4": {"scheme": "int4"},
    "all int4": {"scheme": "int4", "dense_scheme": "int4"},
}


def content(store: Path) -> dict[str, str]:
    files = (path for path in sorted(store.rglob("*")) if path.is_file())
    return {path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def disk_nbytes(*places: Path) -> int:
    return sum(
        path.lstat().st_size for place in places if place.exists() for path in place.rglob("*") if path.is_file()
    )


@pytest.fixture
def downloaded(text, cache, tmp_path) -> Callable[..., dict[str, str]]:  # noqa: F811 - fixtures
    """What the store has that is made of whole shards; the cache is empty afterwards."""

    def make(**options: str) -> dict[str, str]:
        store = tmp_path / "downloaded"
        extract(REPO, store, keep_download=True, **options)
        found = content(store)
        shutil.rmtree(store)
        shutil.rmtree(cache)
        return found

    return make


def stop_after(nbytes: int) -> Callable[[Progress], None]:
    def progress(told: Progress) -> None:
        if told.stage == "extract" and told.done >= nbytes:
            raise KeyboardInterrupt

    return progress


# --- what is made, and of what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", _KINDS)
def test_the_store_is_that_of_whole_shards_and_nothing_else_is_on_the_disk(kind, hub, downloaded, cache, tmp_path):  # noqa: F811
    options, store = _KINDS[kind], tmp_path / "store"
    expected = downloaded(**options)
    most = 0

    def progress(told: Progress) -> None:
        nonlocal most
        most = max(most, disk_nbytes(store, cache))

    report = extract(REPO, store, progress=progress, **options)
    assert content(store) == expected
    assert not list(cache.rglob("*.safetensors"))
    small = disk_nbytes(cache)
    assert most <= 1.1 * report.store_nbytes + small
    network = report.network
    assert network is not None
    assert len(network.checked) == network.files
    assert network.unchecked == ()
    assert network.received_nbytes <= 1.1 * network.needed_nbytes


def test_a_single_file_and_experts_in_stacks_are_checked_too(hub, publish, zoo_checkpoint, tmp_path):  # noqa: F811
    for name in ("gpt_oss", "qwen3_vl_moe"):
        directory = zoo_checkpoint(name, BF16)
        publish(directory, repo=f"someone/{name}")
        report = extract(f"someone/{name}", tmp_path / name)
        assert report.network is not None
        assert len(report.network.checked) == report.network.files > 0
        assert verify(tmp_path / name, against=directory).problems == ()


def test_some_experts_cost_their_own_bytes(hub, text, tmp_path):  # noqa: F811
    report = extract(REPO, tmp_path / "store", experts="0-1", scheme="int4")
    network = report.network
    assert network is not None
    headers = sum(len(info.remote.header) for info in one_of_each(REPO))
    assert network.needed_nbytes < 0.6 * sum(path.stat().st_size for path in text.glob("*.safetensors"))
    assert network.received_nbytes <= 1.1 * network.needed_nbytes + headers
    assert len(network.unchecked) > 0
    assert verify(tmp_path / "store", against=text).problems == ()


def one_of_each(repo: str) -> list:
    from coterie.records.remote import RangeReader

    found = Checkpoint.open(repo, reader=RangeReader()).tensors.values()
    return list({info.path: info for info in found}.values())


def test_a_store_of_the_depth_alone_reads_no_expert_and_can_grow(hub, text, tmp_path):  # noqa: F811
    store = tmp_path / "store"
    report = extract(REPO, store, experts="none")
    assert (report.experts_present, report.complete) == (0, False)
    checkpoint = Checkpoint.open(text)
    assert report.network is not None
    assert report.network.needed_nbytes == checkpoint.dense_nbytes
    assert verify(store, against=text).ok
    grown = extract(REPO, store)
    assert grown.status == "grown"
    assert grown.complete
    assert grown.network is not None
    experts = sum(info.nbytes for info in checkpoint.tensors.values()) - checkpoint.dense_nbytes
    assert grown.network.needed_nbytes == experts
    assert verify(store, against=text).problems == ()
    with pytest.raises(UsageError, match="No experts were selected"):
        extract(REPO, store, experts="none", layers="0")


def test_a_dry_run_reads_headers_only(hub, text, tmp_path):  # noqa: F811
    report = extract(REPO, tmp_path / "store", dry_run=True)
    assert report.network is not None
    assert report.network.needed_nbytes == sum(info.nbytes for info in Checkpoint.open(text).tensors.values())
    assert report.network.received_nbytes == 0
    assert all(
        asked.asked_range and asked.asked_range.startswith("bytes=0-")
        for asked in hub.asked
        if asked.sent and asked.file.endswith(".safetensors")
    )
    assert report.downloads == ()


def test_what_the_cache_has_is_read_there(hub, text, tmp_path):  # noqa: F811
    extract(REPO, tmp_path / "a", keep_download=True)
    hub.asked.clear()
    report = extract(REPO, tmp_path / "b")
    assert report.network is None
    assert hub.fetched() == {}
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_half_in_the_cache_half_by_ranges(hub, text, cache, tmp_path, downloaded):  # noqa: F811
    expected = downloaded()
    checkpoint = Checkpoint.open(REPO)
    checkpoint.download(list(checkpoint.keymap.dense)[:3])
    here = len(list(cache.rglob("*.safetensors")))
    report = extract(REPO, tmp_path / "store")
    assert report.network is not None
    assert 0 < report.network.files == len(list(text.glob("*.safetensors"))) - here
    assert content(tmp_path / "store") == expected


# --- interrupted ------------------------------------------------------------------------------------------------------


def test_it_goes_on_where_it_was_stopped_and_checks_what_was_read_before(hub, text, tmp_path, downloaded):  # noqa: F811
    expected, store = downloaded(), tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        extract(REPO, store, progress=stop_after(200_000), workers=1)
    banks = {path.name for path in store.rglob("*layer*.safetensors")}
    assert banks
    report = extract(REPO, store)
    assert report.status == "resumed"
    assert report.written_nbytes < 150_000
    assert report.network is not None
    assert len(report.network.checked) == len(list(text.glob("*.safetensors")))
    # What an earlier run has checked is not read again; what it has read in part is.
    assert report.network.received_nbytes < 230_000
    assert content(store) == expected
    assert not (store / names.RECEIVED).exists()


def test_a_file_whose_origin_was_not_noted_is_made_again(hub, text, tmp_path, downloaded):  # noqa: F811
    """After a power cut the list may lack its end."""
    expected, store = downloaded(), tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        extract(REPO, store, progress=stop_after(200_000), workers=1)
    (store / names.RECEIVED).write_bytes(b"used 1 2 torn")
    report = extract(REPO, store)
    assert report.written_nbytes > 280_000
    assert content(store) == expected


def test_a_list_that_is_torn_is_read_up_to_there(tmp_path):
    path, sha = tmp_path / "list", "a" * 64
    one = UsedRange(offset=5, nbytes=7, digest="b" * 32)
    first = ReceivedList(path)
    first.used(sha, one)
    first.checked("c" * 64)
    first.close()
    path.write_bytes(path.read_bytes() + b"used 9 9 " + b"d" * 20)
    second = ReceivedList(path)
    assert second.known(sha).used == {(5, 7): one}
    assert second.known("c" * 64).checked
    second.dropped(sha)
    second.close()
    third = ReceivedList(path)
    assert third.known(sha).used == {}
    assert third.known("c" * 64).checked
    third.close()


# --- wrong bytes ------------------------------------------------------------------------------------------------------


def first_expert(directory: Path) -> tuple[str, int]:
    """The file and the middle of an expert's tensor."""
    tensors = Checkpoint.open(directory).tensors
    info = next(info for name, info in sorted(tensors.items()) if ".experts.3." in name)
    return info.path.name, info.offset + info.nbytes // 2


@pytest.mark.parametrize("held", [None, 0], ids=["in order", "nothing waits"])
@pytest.mark.parametrize("what", ["expert", "dense"])
def test_a_wrong_byte_is_named_and_nothing_is_left_of_it(what, held, hub, text, tmp_path, waits, monkeypatch):  # noqa: F811
    if held is not None:
        monkeypatch.setattr(shard_checks, "HELD_BYTES", held)
    shard, at = first_expert(text)
    if what == "dense":
        tensors = Checkpoint.open(text).tensors
        info = next(info for name, info in sorted(tensors.items()) if "q_proj" in name)
        shard, at = info.path.name, info.offset + 5
    hub.faults.append(Fault("corrupt", f"GET cdn {shard}", after=at))
    with pytest.raises(CheckpointFileError, match=rf"{shard} of {REPO} arrived with other bytes than the Hub says"):
        extract(REPO, tmp_path / "store")
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path / "store")
    hub.faults.clear()
    extract(REPO, tmp_path / "store")
    assert verify(tmp_path / "store", against=text).problems == ()


def test_a_byte_that_was_wrong_once_is_found_though_it_comes_right_later(hub, text, tmp_path, waits, monkeypatch):  # noqa: F811
    """The bytes that were used count, not those that were read to check them."""
    monkeypatch.setattr(shard_checks, "HELD_BYTES", 0)
    shard, at = first_expert(text)
    hub.faults.append(Fault("corrupt", rf"GET cdn {shard}", after=at))

    finish = shard_checks.ShardChecks.finish

    def finish_on_right_bytes(self):
        hub.faults.clear()
        finish(self)

    monkeypatch.setattr(shard_checks.ShardChecks, "finish", finish_on_right_bytes)
    with pytest.raises(CheckpointFileError, match=rf"{shard} of {REPO} arrived with other bytes"):
        extract(REPO, tmp_path / "store")
    # If all of the shard has come in order, it is found before anything is read again.
    hub.faults.clear()
    extract(REPO, tmp_path / "store")
    assert verify(tmp_path / "store", against=text).problems == ()


def test_a_wrong_byte_of_a_run_that_was_stopped_is_found_by_the_next(hub, text, tmp_path, waits):  # noqa: F811
    shard, at = first_expert(text)
    sha = hashlib.sha256((text / shard).read_bytes()).hexdigest()
    noted = tmp_path / "store" / names.RECEIVED

    def is_used() -> bool:
        used = map(str.split, noted.read_text().splitlines()) if noted.exists() else ()
        return any(int(n[1]) <= at < int(n[1]) + int(n[2]) for n in used if len(n) > 4 and n[4] == sha)

    def stop(told: Progress) -> None:
        if is_used():
            raise KeyboardInterrupt

    hub.faults.append(Fault("corrupt", f"GET cdn {shard}", after=at))
    wrong = rf"{shard} of {REPO} arrived with other bytes"
    # If all of the shard has come before the run is stopped, it is found at once.
    with pytest.raises((KeyboardInterrupt, CheckpointFileError)) as ended:
        extract(REPO, tmp_path / "store", progress=stop)
    hub.faults.clear()
    if isinstance(ended.value, KeyboardInterrupt):
        assert is_used()
        with pytest.raises(CheckpointFileError) as ended:
            extract(REPO, tmp_path / "store")
    assert re.search(wrong, str(ended.value))
    extract(REPO, tmp_path / "store")
    assert verify(tmp_path / "store", against=text).problems == ()


def test_a_wrong_header_is_found(hub, text, tmp_path, waits):  # noqa: F811
    """A shape that is another one, with as many values."""
    shard = first_expert(text)[0]
    data = (text / shard).read_bytes()
    place = data.index(b'"data_offsets"')
    digit = place + re.search(rb"\d", data[place:]).start()  # type: ignore[union-attr]
    hub.faults.append(Fault("corrupt", f"GET cdn {shard}", after=digit, count=2))
    with pytest.raises(CheckpointFileError, match=shard):
        extract(REPO, tmp_path / "store")
    hub.faults.clear()
    extract(REPO, tmp_path / "store")
    assert verify(tmp_path / "store", against=text).problems == ()


# --- command and arguments --------------------------------------------------------------------------------------------


def test_the_command_says_what_came(hub, text, tmp_path, capsys):  # noqa: F811
    store = str(tmp_path / "store")
    assert main(["extract", REPO, store, "--max-rate", "500MB/s", "--experts", "0-1", "--dry-run"]) == 0
    assert re.search(r"network +\d+\.\d+ KiB of 7 files", capsys.readouterr().out)
    assert main(["extract", REPO, store, "--max-rate", "500MB/s"]) == 0
    assert re.search(
        r"Read \d+\.\d+ KiB over the network in \d+ requests\. 7 files were compared with the Hub's SHA-256\.",
        capsys.readouterr().out.replace("\n", " "),
    )
    assert main(["extract", REPO, str(tmp_path / "other"), "--experts", "none", "--json"]) == 0
    network = json.loads(capsys.readouterr().out)["network"]
    assert network["requests"] > 0 == network["retries"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_rate": "fast"}, "rate 'fast' is not a size"),
        ({"max_rate": "20"}, "would be 20 bytes"),
        ({"max_rate": "20MB/s", "offline": True}, "offline says that nothing is"),
    ],
)
def test_a_rate_that_cannot_be_kept_is_refused(options, why, tmp_path):
    with pytest.raises(UsageError, match=why):
        extract(REPO, tmp_path / "store", **options)
