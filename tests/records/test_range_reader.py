"""Ranges of files on servers: the very bytes, or one error that names file and cause."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from random import Random

import pytest
from huggingface_hub import hf_hub_url

from checkpoint.conftest import REPO
from checkpoint.hub import Fault
from coterie.errors import CheckpointFileError
from coterie.records import piece_buffer, pieces_of, read_range
from coterie.records.remote import HttpFile, RangeReader
from coterie.records.remote.ahead import Ahead, joined
from coterie.records.remote.rate import RateLimit

CONTENT = Random(1).randbytes(300_000)
NAME = "weights.safetensors"


@pytest.fixture
def address(publish, tmp_path) -> str:
    directory = tmp_path / "published"
    directory.mkdir()
    (directory / NAME).write_bytes(CONTENT)
    return hf_hub_url(REPO, NAME, revision=publish(directory))


def remote(address: str, reader: RangeReader, *, nbytes: int = len(CONTENT), sha256: str | None = None) -> HttpFile:
    known = sha256 or hashlib.sha256(CONTENT).hexdigest()
    return HttpFile(address, f"{NAME} of {REPO}", nbytes, known, b"", reader)


def read(file: HttpFile, offset: int, nbytes: int) -> bytes:
    buffer = memoryview(bytearray(nbytes))
    assert read_range(file, offset, buffer) == min(nbytes, max(0, file.nbytes - offset))
    return bytes(buffer)


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 1), (0, 300_000), (12_345, 6_789), (299_999, 1)])
def test_a_range_is_read_and_nothing_else(offset, nbytes, hub, address):
    reader = RangeReader()
    assert read(remote(address, reader), offset, nbytes) == CONTENT[offset : offset + nbytes]
    assert hub.fetched() == {NAME: nbytes}
    assert (reader.received.nbytes, reader.received.retries) == (nbytes, 0)


def test_nothing_is_asked_for_beyond_the_end(hub, address):
    file = remote(address, RangeReader())
    assert read(file, 299_990, 100)[:10] == CONTENT[-10:]
    hub.asked.clear()
    assert read_range(file, 300_000, memoryview(bytearray(5))) == 0
    assert hub.asked == []


def test_pieces_are_those_of_a_file_here(address):
    file = remote(address, RangeReader())
    assert b"".join(bytes(piece) for piece in pieces_of(file, 1000, 250_000)) == CONTENT[1000:251_000]
    assert len(piece_buffer(250_000)) == 250_000


def test_where_the_hub_sends_to_is_asked_once_and_without_the_token(hub, address, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    file = remote(address, RangeReader())
    for offset in range(0, 300_000, 50_000):
        assert read(file, offset, 50_000) == CONTENT[offset : offset + 50_000]
    assert [asked.server for asked in hub.asked] == ["hub", *["cdn"] * 6]
    assert {asked.token for asked in hub.asked if asked.server == "cdn"} == {None}
    assert hub.asked[0].token == "Bearer hf_secret"


def test_connections_serve_one_request_after_the_other(hub, address):
    file = remote(address, RangeReader())
    read(file, 0, 1000)
    before = len(hub.connected)
    for offset in range(0, 200_000, 20_000):
        read(file, offset, 10_000)
    assert len(hub.connected) == before


class _Plain(BaseHTTPRequestHandler):
    tokens: list[str | None]

    def do_GET(self) -> None:
        first, last = map(int, self.headers["range"].removeprefix("bytes=").split("-"))
        self.tokens.append(self.headers.get("authorization"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(CONTENT[first : last + 1])

    def log_message(self, *args) -> None:
        pass


def test_a_plain_server_is_read_and_gets_no_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    handler = type("Handler", (_Plain,), {"tokens": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        file = remote(f"http://127.0.0.1:{server.server_port}/{NAME}", RangeReader())
        assert read(file, 5, 100_000) == CONTENT[5:100_005]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert set(handler.tokens) == {None}


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_it_goes_on_where_the_connection_broke(kind, hub, address, waits):
    hub.faults.append(Fault(kind, "GET cdn", after=100_000, count=2))
    reader = RangeReader()
    assert read(remote(address, reader), 0, 300_000) == CONTENT
    assert reader.received.retries == len(waits) == 2
    assert hub.fetched()[NAME] <= 300_000 + 2 * 32_768


def test_a_server_that_stalls_is_asked_again(hub, address, waits, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults.append(Fault("stall", "GET cdn", after=50_000, count=1, seconds=2.0))
    assert read(remote(address, RangeReader()), 0, 300_000) == CONTENT


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("server", ["hub", "cdn"])
def test_a_busy_server_is_waited_for_as_long_as_it_says(server, status, hub, address, waits):
    hub.faults.append(Fault("status", f" {server} ", status=status, headers={"Retry-After": "7"}, count=1))
    assert read(remote(address, RangeReader()), 10, 1000) == CONTENT[10:1010]
    assert waits == [7.0]


def test_an_address_that_has_run_out_is_renewed_without_a_wait(hub, address, waits):
    file = remote(address, RangeReader())
    read(file, 0, 1000)
    hub.faults.append(Fault("status", "GET cdn", status=403, count=1))
    hub.asked.clear()
    assert read(file, 1000, 1000) == CONTENT[1000:2000]
    assert waits == []
    assert [asked.server for asked in hub.asked] == ["hub", "cdn"]


def test_a_fresh_address_that_is_refused_is_an_error(hub, address, waits):
    hub.faults.append(Fault("status", "GET cdn", status=403))
    with pytest.raises(CheckpointFileError, match=rf"{NAME} of {REPO} .*answered 403 Forbidden \(tried 6 times\)"):
        read(remote(address, RangeReader()), 0, 1000)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault("unranged", "GET cdn"), "ranges are ignored.*--keep-download"),
        (Fault("headers", "GET cdn", headers={"Content-Range": "bytes 0-999/300000"}), "another part of the file"),
        (Fault("headers", "GET cdn", headers={"Content-Range": "bytes 1000-1999/299999"}), "has 299,999 bytes now"),
        (Fault("status", "GET cdn", status=404), "answered 404"),
        (Fault("close", "GET cdn"), "connection broke"),
    ],
    ids=["unranged", "another part", "another size", "404", "close"],
)
def test_what_does_not_pass_is_one_error_that_names_file_and_cause(fault, cause, hub, address, waits):
    hub.faults.append(fault)
    with pytest.raises(CheckpointFileError, match=rf"{NAME} of {REPO} could not be read at byte 1,000: .*({cause})"):
        read(remote(address, RangeReader()), 1000, 1000)


def test_what_is_lacking_of_an_answer_is_asked_for(hub, address, waits):
    hub.faults.append(Fault("short", "GET cdn", count=1))
    reader = RangeReader()
    assert read(remote(address, reader), 1000, 1000) == CONTENT[1000:2000]
    assert [asked.asked_range for asked in hub.asked if asked.server == "cdn"] == ["bytes=1000-1999", "bytes=1999-1999"]


def test_another_content_at_the_hub_is_noticed_before_a_byte_is_read(hub, address, waits):
    file = remote(address, RangeReader(), sha256="0" * 64)
    with pytest.raises(CheckpointFileError, match="its content is another one now"):
        read(file, 0, 10)
    assert hub.fetched() == {}


def test_a_content_that_changes_in_the_middle_is_an_error(hub, address, waits):
    file = remote(address, RangeReader())
    read(file, 0, 1000)
    hub.faults.append(Fault("headers", "GET cdn", headers={"ETag": '"y"'}))
    with pytest.raises(CheckpointFileError, match="its content has changed: its tag was x, and is y"):
        read(file, 1000, 1000)


def test_a_reader_that_is_stopped_ends_its_reads(hub, address, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.faults.append(Fault("status", "GET cdn", status=503, headers={"Retry-After": "300"}))
    reader = RangeReader()
    threading.Timer(0.2, reader.stop).start()
    start = time.monotonic()
    with pytest.raises(CheckpointFileError) as caught:
        read(remote(address, reader), 0, 1000)
    assert caught.value.stopped
    assert time.monotonic() - start < 60


# --- ahead ------------------------------------------------------------------------------------------------------------


def test_neighbours_are_fetched_together(hub, address):
    reader = RangeReader()
    file = remote(address, reader)
    ranges = [(file, start, 900) for start in range(0, 100_000, 1000)]
    with reader.expecting(ranges):
        for _, start, nbytes in ranges:
            assert read(file, start, nbytes) == CONTENT[start : start + nbytes]
    assert reader.received.requests == 1
    assert hub.fetched() == {NAME: 99_900}


def test_what_is_far_apart_or_long_is_fetched_by_itself():
    file = HttpFile("a", "a", 10**9, None, b"", None)
    far = joined([(file, 0, 10), (file, 100, 10), (file, 500, 10)], longest=1000, gap=100)
    assert [(one.start, one.end) for one in far] == [(0, 110), (500, 510)]
    long = joined([(file, 0, 2500)], longest=1000, gap=100)
    assert [(one.start, one.end) for one in long] == [(0, 1000), (1000, 2000), (2000, 2500)]


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_asking_gets_the_right_bytes(seed):
    dice = Random(seed)
    fetched: list[int] = []

    def fetch(file: HttpFile, offset: int, buffer: memoryview) -> None:
        fetched.append(len(buffer))
        buffer[:] = CONTENT[offset : offset + len(buffer)]

    file = HttpFile("a", "a", len(CONTENT), None, b"", None)
    ranges = [(file, start, dice.randrange(1, 3000)) for start in range(0, 290_000, 3000)]
    with closing(Ahead(fetch, ranges, budget=20_000)) as ahead:
        wanted = list(ranges)
        dice.shuffle(wanted)
        for _, start, nbytes in wanted:
            buffer = memoryview(bytearray(nbytes))
            done = 0
            while done < nbytes:
                count = ahead.take(file, start + done, buffer[done : done + 700])
                assert count
                done += count
            assert buffer == CONTENT[start : start + nbytes]
        assert ahead.take(file, 290_001, memoryview(bytearray(5))) == 0


def test_an_error_of_what_was_fetched_ahead_reaches_who_asks(hub, address, waits):
    hub.faults.append(Fault("status", "GET cdn", status=500))
    reader = RangeReader()
    file = remote(address, reader)
    with reader.expecting([(file, 0, 100)]), pytest.raises(CheckpointFileError, match="answered 500"):
        read(file, 0, 100)


# --- rate -------------------------------------------------------------------------------------------------------------


def test_a_rate_is_kept(monkeypatch):
    waited: list[float] = []
    now = [100.0]

    def pause(seconds: float, stopped: threading.Event) -> None:
        waited.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("coterie.records.remote.rate.pause", pause)
    monkeypatch.setattr("coterie.records.remote.rate.time.monotonic", lambda: now[0])
    limit = RateLimit(1000)
    for _ in range(50):
        limit.take(200, threading.Event())
    assert 9.0 <= sum(waited) <= 10.0
