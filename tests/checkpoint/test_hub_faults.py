"""What goes wrong between the Hub and this machine: tried again, waited for, or one error that names file and cause."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from coterie.checkpoint import Checkpoint
from coterie.checkpoint.hub import repository
from coterie.checkpoint.hub.remote_headers import RemoteHeader
from coterie.cli import main
from coterie.errors import (
    CheckpointError,
    CheckpointFileError,
    CheckpointNotFoundError,
    CoterieError,
    DiskSpaceError,
    StoreNotFoundError,
)
from coterie.extraction import extract
from coterie.inspection import verify
from coterie.records.remote.attempts import Attempts
from coterie.records.remote.failures import BrokenAnswer, RequestFailure
from coterie.store import Store

from .conftest import REPO
from .hub import Fault


def download(**options) -> Checkpoint:
    checkpoint = Checkpoint.open(REPO, **options)
    checkpoint.download(checkpoint.tensors)
    return checkpoint


def same(remote: Checkpoint, directory: Path) -> bool:
    local = Checkpoint.open(directory)
    return all(torch.equal(remote.read(name), local.read(name)) for name in local.tensors)


def a_shard(directory: Path) -> str:
    return sorted(path.name for path in directory.glob("*.safetensors"))[1]


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*.incomplete"))


# --- broken connections -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_a_shard_goes_on_where_the_connection_broke(kind, hub, text, waits, cache):
    shard = a_shard(text)
    checkpoint = Checkpoint.open(REPO)
    hub.fetched()
    hub.asked.clear()
    hub.faults.append(Fault(kind, f"GET cdn {shard}", after=20_000, count=1))
    checkpoint.download(checkpoint.tensors)
    assert same(checkpoint, text)
    ranges = [asked.asked_range for asked in hub.asked if asked.file == shard and asked.sent]
    assert ranges[0] is None
    assert ranges[1] > "bytes=1"
    assert hub.fetched()[shard] <= (text / shard).stat().st_size + 16_384
    assert len(waits) == 1
    assert leftovers(cache) == []


@pytest.mark.parametrize("where", ["api", "config.json", "cdn"])
@pytest.mark.parametrize("kind", ["reset", "close", "stall"])
def test_one_broken_connection_is_no_error(where, kind, hub, text, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.faults.append(Fault(kind, where, count=1, seconds=2.0))
    assert same(download(), text)


@pytest.mark.parametrize("kind", ["reset", "close", "stall"])
def test_a_connection_that_always_breaks_is_one_error(kind, hub, text, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    checkpoint = Checkpoint.open(REPO)
    shard = a_shard(text)
    hub.faults.append(Fault(kind, f"cdn {shard}", seconds=1.0))
    with pytest.raises(CheckpointFileError, match=rf"{shard} of {REPO} .*(broke|no answer).*tried 6 times.*are kept"):
        checkpoint.download(checkpoint.tensors)
    hub.faults.clear()
    checkpoint.download(checkpoint.tensors)
    assert same(checkpoint, text)


def test_a_line_that_drops_often_gets_on_as_long_as_something_arrives(hub, publish, tmp_path, zoo_checkpoint, waits):
    directory = zoo_checkpoint("qwen3_moe", torch.bfloat16)
    publish(directory)
    checkpoint = Checkpoint.open(REPO)
    size = (directory / "model.safetensors").stat().st_size
    hub.faults.append(Fault("close", "cdn model.safetensors", after=70_000))
    checkpoint.download(checkpoint.tensors)
    assert same(checkpoint, directory)
    assert hub.fetched()["model.safetensors"] <= size + 100_000
    assert len(waits) >= size // 70_000


def test_an_unreachable_cdn_is_one_error(hub, text, waits, monkeypatch):
    checkpoint = Checkpoint.open(REPO)
    monkeypatch.setattr(type(hub), "cdn", "http://127.0.0.1:9")
    with pytest.raises(CheckpointFileError, match="no connection"):
        checkpoint.download(checkpoint.tensors)


# --- busy servers -----------------------------------------------------------------------------------------------------

STAGES = {
    "api": "GET hub api",
    "small file": "GET hub config.json",
    "address": "GET hub model-",
    "CDN": "GET cdn model-",
}


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("stage", STAGES)
def test_a_busy_server_is_asked_again(status, stage, hub, text, waits):
    hub.faults.append(Fault("status", STAGES[stage], status=status, count=2))
    assert same(download(), text)
    assert sorted(waits) in ([0.5, 0.5], [0.5, 1.0])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("form", ["seconds", "date", "rate limit"])
def test_it_is_asked_when_it_wants_to_be(form, stage, hub, text, waits, caplog):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    said = {
        "seconds": ("Retry-After", "30"),
        "date": ("Retry-After", later),
        "rate limit": ("RateLimit", '"api";r=0;t=30'),
    }
    name, value = said[form]
    hub.faults.append(Fault("status", STAGES[stage], status=429, count=1, headers={name: value}))
    with caplog.at_level(logging.WARNING, "coterie.hub"):
        assert same(download(), text)
    assert len(waits) == 1
    assert 20 <= waits[0] <= 30
    assert re.search(r"answered 429 Too Many Requests \(Retry-After: \d+ s\)\. Trying again in \d+ s", caplog.text)


@pytest.mark.parametrize("value", ["3600", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
@pytest.mark.parametrize("stage", STAGES)
def test_nobody_waits_for_hours(value, stage, hub, text, waits):
    hub.faults.append(Fault("status", STAGES[stage], status=503, headers={"Retry-After": value}))
    with pytest.raises(CheckpointError, match=r"503 Service Unavailable \(Retry-After: "):
        download()
    assert waits == []


@pytest.mark.parametrize("value", ["soon", "-5", "", "1e3", "Fri, 99 Foo 2026"])
def test_a_time_that_says_nothing_is_none(value, hub, text, waits):
    hub.faults.append(Fault("status", "GET cdn", count=1, headers={"Retry-After": value}))
    assert same(download(), text)
    assert waits == [0.5]


def test_waiting_has_an_end(hub, text, waits):
    hub.faults.append(Fault("status", "api", status=429, headers={"Retry-After": "100"}))
    with pytest.raises(
        CheckpointNotFoundError, match=r"429 Too Many Requests \(Retry-After: 100 s\) \(tried 4 times\)"
    ):
        Checkpoint.open(REPO)
    assert waits == [100.0, 100.0, 100.0]


def test_what_nobody_wants_any_more_is_not_tried_again(waits):
    stopped = threading.Event()
    attempts = Attempts("a shard", stopped=stopped)
    attempts.failed(BrokenAnswer("refused"))
    stopped.set()
    with pytest.raises(RequestFailure, match="refused"):
        attempts.failed(BrokenAnswer("refused"))
    assert waits == [0.5]


def test_what_is_here_is_used_while_the_hub_is_down(hub, text, waits, caplog):
    download()
    hub.faults.append(Fault("status", "", status=503))
    with caplog.at_level(logging.WARNING, "coterie.hub"):
        assert same(download(), text)
    assert "503" in caplog.text
    assert "cache" in caplog.text


def test_an_address_of_the_cdn_that_ran_out_is_asked_for_anew(hub, text, waits):
    hub.faults.append(Fault("status", "GET cdn", status=403, count=1))
    assert same(download(), text)


# --- wrong bytes ------------------------------------------------------------------------------------------------------


def test_a_wrong_byte_is_an_error_and_nothing_of_it_stays(hub, text, waits, cache, tmp_path):
    shard = a_shard(text)
    at = (text / shard).stat().st_size - 3
    hub.faults.append(Fault("corrupt", f"cdn {shard}", after=at))
    with pytest.raises(
        CheckpointFileError, match=rf"{shard} of {REPO} .*other bytes than the Hub says.*SHA-256.*removed"
    ):
        extract(REPO, tmp_path / "store")
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path / "store")
    assert leftovers(cache) == []
    hub.faults.clear()
    extract(REPO, tmp_path / "store")
    assert verify(tmp_path / "store", against=text).problems == ()


@pytest.mark.parametrize("count", [1, None])
def test_a_header_that_is_none_is_asked_for_once_more(count, hub, text, waits):
    hub.faults.append(Fault("corrupt", f"cdn {a_shard(text)}", after=8, count=count))  # the first byte of the JSON
    if count is None:
        with pytest.raises(CheckpointFileError, match=rf"{a_shard(text)} is not a valid safetensors file"):
            Checkpoint.open(REPO)
    else:
        assert same(download(), text)


def test_a_header_that_differs_from_the_file_s_is_an_error(hub, text, waits, tmp_path, monkeypatch):
    """It decides what the bytes are taken for, and no checksum tells that it was another when it was sent."""
    read = repository.read_remote_header

    def other(url: str, path: Path, *rest) -> RemoteHeader:
        header = read(url, path, *rest)
        return replace(header, tensors={name: replace(info, dtype="F16") for name, info in header.tensors.items()})

    with monkeypatch.context() as patched:
        patched.setattr(repository, "read_remote_header", other)
        with pytest.raises(CheckpointFileError, match=r"model-\S+ has another header than the one"):
            extract(REPO, tmp_path / "store", keep_download=True)
    with pytest.raises(StoreNotFoundError):
        Store.open(tmp_path / "store")


def test_a_byte_that_is_wrong_once_is_sent_again(hub, text, waits):
    hub.faults.append(Fault("corrupt", f"cdn {a_shard(text)}", after=30_000, count=1))
    assert same(download(), text)


def test_a_small_file_is_compared_too(hub, text, waits, cache):
    hub.faults.append(Fault("corrupt", "hub config.json", after=20))
    with pytest.raises(CheckpointFileError, match=r"config\.json of .*git blob id"):
        Checkpoint.open(REPO)
    hub.faults.clear()
    assert same(download(), text)


def test_a_short_file_is_an_error(hub, text, waits):
    checkpoint = Checkpoint.open(REPO)
    hub.faults.append(Fault("status", f"cdn {a_shard(text)}", status=200, headers={}))  # "OK", and nothing of the file
    with pytest.raises(CheckpointFileError, match=r"bytes were sent"):
        checkpoint.download(checkpoint.tensors)


def test_a_server_that_sends_less_than_it_lists_is_asked_for_the_rest(hub, text, waits):
    hub.faults.append(Fault("short", f"cdn {a_shard(text)}", after=1000, count=2))
    assert same(download(), text)


def test_a_file_that_is_shorter_at_the_server_is_an_error(hub, publish, text, waits, tmp_path):
    checkpoint = Checkpoint.open(REPO)
    served = shutil.copytree(text, tmp_path / "cut")
    with (served / a_shard(text)).open("r+b") as file:
        file.truncate(10_000)
    found = hub.repositories[REPO]
    found.commits[found.references["main"]] = served
    with pytest.raises(CheckpointFileError, match=r"the server has only 10,000 of its [\d,]+ bytes"):
        checkpoint.download(checkpoint.tensors)


def test_a_part_of_another_content_is_not_gone_on_from(hub, text, waits, cache):
    checkpoint = Checkpoint.open(REPO)
    shard = a_shard(text)
    partial = checkpoint.location.repository.cache.partial(checkpoint.location.repository.listing.files[shard].sha256)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(bytes(10_000))  # as a power cut leaves it
    checkpoint.download(checkpoint.tensors)
    assert same(checkpoint, text)


def test_a_file_in_the_cache_that_was_cut_is_downloaded_again(hub, text, waits):
    checkpoint = download()
    path = (checkpoint.location.directory / a_shard(text)).resolve()
    with path.open("r+b") as file:
        file.truncate(1000)
    assert same(download(), text)


@pytest.mark.parametrize("offline", [False, True])
def test_verify_compares_what_is_in_the_cache(offline, hub, text, waits):
    path = download().location.directory / a_shard(text)
    assert verify(REPO, offline=offline).problems == ()
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    (problem,) = verify(REPO, offline=offline).problems
    assert (problem.kind, problem.file) == ("corrupt", path.name)
    assert "SHA-256" in problem.message


# --- servers without ranges, and hostile headers ----------------------------------------------------------------------


def test_a_server_without_ranges_is_not_read_to_the_end(hub, publish, tmp_path, zoo_checkpoint, waits):
    directory = shutil.copytree(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path / "large")
    with (directory / "model.safetensors").open("ab") as file:
        file.truncate(200 * 2**20)  # sent from a sparse file, as far as anyone reads
    publish(directory)
    hub.faults.append(Fault("unranged", "cdn"))
    Checkpoint.open(REPO)
    assert hub.fetched()["model.safetensors"] < 20 * 2**20


def test_a_shard_is_whole_where_ranges_are_ignored(hub, text, waits):
    checkpoint = Checkpoint.open(REPO)
    hub.faults += [Fault("unranged", "cdn"), Fault("close", f"cdn {a_shard(text)}", after=30_000, count=2)]
    checkpoint.download(checkpoint.tensors)
    assert same(checkpoint, text)


def test_a_long_header_takes_a_second_request(hub, publish, tmp_path, zoo_checkpoint, waits):
    from safetensors.torch import load_file, save_file

    directory = shutil.copytree(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path / "long")
    path = directory / "model.safetensors"
    save_file(load_file(path), path, metadata={"note": "x" * 300_000})
    publish(directory)
    remote, local = Checkpoint.open(REPO), Checkpoint.open(directory)
    assert {n: (t.dtype, t.shape, t.offset, t.nbytes) for n, t in remote.tensors.items()} == {
        n: (t.dtype, t.shape, t.offset, t.nbytes) for n, t in local.tensors.items()
    }
    assert max(asked.sent for asked in hub.asked) < 310_000


@pytest.mark.parametrize("claim", [2**64 - 1, 2**40, 10_000_000])
def test_a_hostile_length_of_a_header_is_refused_at_once(claim, hub, publish, tmp_path, zoo_checkpoint, waits):
    directory = shutil.copytree(zoo_checkpoint("qwen3_moe", torch.bfloat16), tmp_path / "hostile")
    with (directory / "model.safetensors").open("r+b") as file:
        file.write(claim.to_bytes(8, "little"))
    publish(directory)
    with pytest.raises(CheckpointFileError, match=rf"model\.safetensors .*claims {claim} bytes"):
        Checkpoint.open(REPO)
    assert sum(hub.fetched().values()) <= 200_000  # it was asked for twice


# --- leftovers and disks ----------------------------------------------------------------------------------------------


def test_what_a_killed_client_left_is_removed(hub, text, waits, cache):
    checkpoint = Checkpoint.open(REPO)
    found = checkpoint.location.repository
    mine = found.listing.files[a_shard(text)].sha256
    (found.cache.blob("x").parent / f"{mine}.0a1b2c3d.incomplete").write_bytes(bytes(5000))
    old, new = found.cache.partial("cd" * 32), found.cache.partial("ef" * 32)
    for path in (old, new):
        path.write_bytes(bytes(5000))
    os.utime(old, (0, 0))
    assert same(download(), text)
    assert leftovers(cache) == [new.name]  # which a try at another commit may go on from


def test_what_another_process_downloads_now_stays(hub, text, waits, cache):
    checkpoint = Checkpoint.open(REPO)
    cache_of = checkpoint.location.repository.cache
    other = cache_of.blob("x").parent / f"{'ab' * 32}.0a1b2c3d.incomplete"
    other.write_bytes(bytes(5000))
    begun, done = threading.Event(), threading.Event()

    def hold() -> None:
        with cache_of.locked("ab" * 32):
            begun.set()
            done.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(30)
    Checkpoint.open(REPO)
    assert leftovers(cache) == [other.name]
    done.set()
    thread.join()
    cache_of.remove_stale()
    assert leftovers(cache) == []


def test_a_killed_download_is_gone_on_from(hub, text, waits, cache):
    checkpoint = Checkpoint.open(REPO)
    shard, found = a_shard(text), checkpoint.location.repository
    content = (text / shard).read_bytes()
    found.cache.partial(found.listing.files[shard].sha256).write_bytes(content[:25_000])
    hub.asked.clear()
    checkpoint.download(checkpoint.tensors)
    assert hub.fetched()[shard] == len(content) - 25_000
    assert same(checkpoint, text)


def test_two_downloads_at_once_are_one(hub, text, waits):
    both = [Checkpoint.open(REPO), Checkpoint.open(REPO)]
    hub.asked.clear()
    threads = [threading.Thread(target=one.download, args=(one.tensors,)) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sizes = {path.name: path.stat().st_size for path in text.glob("*.safetensors")}
    assert hub.fetched() == sizes
    assert all(same(one, text) for one in both)


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` gives."""

    total: int
    used: int
    free: int


_SMALL = 2**20 + 50_000


@pytest.fixture
def two_disks(monkeypatch, cache):
    """A store's disk with room, and a small one for the Hub's cache."""
    cache.mkdir()

    def usage(path: Path) -> Usage:
        return Usage(2**40, 0, _SMALL if Path(path).is_relative_to(cache) else 2**39)

    monkeypatch.setattr("shutil.disk_usage", usage)
    stat = Path.stat

    class Elsewhere:
        def __init__(self, found):
            self._found, self.st_dev = found, found.st_dev + 1

        def __getattr__(self, name):
            return getattr(self._found, name)

    monkeypatch.setattr(
        Path, "stat", lambda self, **k: Elsewhere(stat(self, **k)) if self == cache else stat(self, **k)
    )


def test_the_disk_of_the_cache_is_looked_at(hub, text, waits, two_disks, cache, tmp_path):
    hub.asked.clear()
    for dry_run in (True, False):
        with pytest.raises(
            DiskSpaceError, match=rf"download needs .* on the disk of the Hub's cache, {cache}; .*HF_HOME"
        ) as e:
            extract(REPO, tmp_path / "store", keep_download=True, dry_run=dry_run)
        assert e.value.path == cache
        assert e.value.free == _SMALL
    assert not [
        asked for asked in hub.asked if asked.file.endswith(".safetensors") and asked.asked_range is None and asked.sent
    ]


def test_opening_a_model_looks_at_it_too(hub, text, waits, two_disks, cache):
    checkpoint = Checkpoint.open(REPO)
    with pytest.raises(DiskSpaceError, match="disk of the Hub's cache"):
        checkpoint.download(checkpoint.tensors)


def test_a_full_disk_in_the_middle_is_named_and_what_is_there_is_kept(hub, text, waits, cache, monkeypatch):
    checkpoint = Checkpoint.open(REPO)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("coterie.checkpoint.hub.downloads.os.fsync", full)
        with pytest.raises(DiskSpaceError, match=rf"disk of the Hub's cache, {cache}, is full .*is kept"):
            checkpoint.download(checkpoint.tensors)
    assert len(leftovers(cache)) == 1
    checkpoint.download(checkpoint.tensors)
    assert same(checkpoint, text)


# --- who may read -----------------------------------------------------------------------------------------------------


def test_a_token_goes_to_the_hub_only(hub, text, waits, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    download()
    assert {asked.token for asked in hub.asked if asked.server == "hub"} == {"Bearer hf_secret"}
    assert {asked.token for asked in hub.asked if asked.server == "cdn"} == {None}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("stage", ["api", "hub model-"])
def test_a_gated_model_says_how_to_log_in(status, stage, hub, text, waits):
    hub.faults.append(Fault("status", stage, status=status, headers={"X-Error-Code": "GatedRepo"}))
    with pytest.raises(CheckpointError, match=rf"(?s){status}.*hf auth login"):
        download()
    assert waits == []


# --- the command line -------------------------------------------------------------------------------------------------


def test_a_command_says_what_it_waits_for_and_prints_json_only(hub, text, waits, tmp_path, capsys):
    hub.faults.append(Fault("status", "cdn", status=429, count=1, headers={"Retry-After": "30"}))
    assert main(["extract", REPO, str(tmp_path / "store"), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("{")
    assert captured.out.endswith("}\n")
    assert "429 Too Many Requests (Retry-After: 30 s). Trying again in 30 s." in captured.err


def test_a_command_ends_in_one_line(hub, text, waits, tmp_path, capsys):
    hub.faults.append(Fault("reset", "cdn"))
    assert main(["extract", REPO, str(tmp_path / "store")]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert re.search(r"Error: .*model-\S+ of someone/tiny-moe .*the connection broke", captured.err)


@pytest.mark.parametrize("at", ["shard", "header"])
def test_an_interrupted_command_says_what_is_kept(at, hub, text, tmp_path, capsys, monkeypatch):
    def interrupt(seconds: float, stopped: threading.Event) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coterie.records.remote.attempts.pause", interrupt)
    after = 20_000 if at == "shard" else 0
    hub.faults.append(Fault("close", "cdn", after=after))
    assert main(["extract", REPO, str(tmp_path / "store"), "--keep-download"]) == 130
    captured = capsys.readouterr()
    assert "What was downloaded is kept in the Hub's cache; the same command goes on from there." in captured.err
    assert not (tmp_path / "store").exists()


def test_errors_are_ours(hub, text, waits):
    hub.faults.append(Fault("status", "cdn", status=302, headers={"Location": "http://[bad"}))
    with pytest.raises(CoterieError, match="model-"):
        download()
