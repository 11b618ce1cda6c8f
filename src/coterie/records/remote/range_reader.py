"""Ranges of files on servers, read into memory: tried again, several at once, over connections that stay open."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from coterie.errors import CheckpointFileError
from coterie.records.remote.ahead import Ahead, Range
from coterie.records.remote.attempts import Attempts
from coterie.records.remote.failures import PROBLEMS, BrokenAnswer, Failure, RequestFailure, StatusProblem
from coterie.records.remote.http_file import HttpFile
from coterie.records.remote.rate import RateLimit
from coterie.records.remote.requests import Answer, located, opened

AT_ONCE = 6
"""Requests at once: enough to fill a line whose answers take long, and few enough for a server not to mind."""

_RUN_OUT = frozenset({401, 403, 404, 410})
"""What servers answer whose signed address is no longer good."""

Watcher = Callable[[HttpFile, int, memoryview], None]
"""Told of bytes that have arrived: the file, their offset in it, and they; from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What has come over the network.

    Attributes:
        nbytes: Bytes of files, with those that were sent again or were of no use.
        requests: Requests for ranges.
        retries: Those that failed and were tried again.
    """

    nbytes: int = 0
    requests: int = 0
    retries: int = 0


def digest_of(data: bytes | memoryview) -> str:
    """BLAKE2b-128 as 32 hex digits, by which bytes that come twice are compared."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(slots=True)
class _Served:
    """Where a file is served at present."""

    lock: threading.Lock
    url: str | None = None
    proven: bool = False
    etag: tuple[str, str] | None = None


class RangeReader:
    """Reads ranges of files of servers. Safe to use from several threads.

    An answer has to be the range that was asked for, of a file of the right size; of a file whose SHA-256 is known,
    the Hub has to have that content still. Bytes of a part of a file have no checksum of their own, so a wrong one is
    found by whoever compares whole files: see ``watch``.

    Args:
        at_once: Most requests at once.
        rate: Holds all requests together below a rate, and perhaps those of others; None for no limit.
        noting: Whether what comes while nobody watches is noted, for whoever watches later.
    """

    def __init__(self, *, at_once: int = AT_ONCE, rate: RateLimit | None = None, noting: bool = False) -> None:
        self.watch: Watcher | None = None
        self._stopped = threading.Event()
        self._slots = threading.BoundedSemaphore(at_once)
        self._at_once = at_once
        self._rate = rate
        self._served: dict[str, _Served] = {}
        self._ahead: Ahead | None = None
        self._lock = threading.Lock()
        self._received = Received()
        self._noting = noting
        self._unwatched: list[tuple[HttpFile, int, int, str]] = []

    def take_unwatched(self) -> list[tuple[HttpFile, int, int, str]]:
        """File, offset, number of bytes and digest of what came while nobody watched; once. See ``noting``."""
        taken, self._unwatched = self._unwatched, []
        return taken

    @property
    def received(self) -> Received:
        """What has come so far."""
        return self._received

    def stop(self) -> None:
        """Ends all reads, those that are going on too, as soon as their servers send something or time runs out."""
        self._stopped.set()
        if self._ahead is not None:
            self._ahead.close()

    @contextmanager
    def expecting(self, ranges: Iterable[Range]) -> Iterator[None]:
        """Fetches what will be read within the block, in this order, before it is asked for; neighbours together.

        One such block at a time; reads of other ranges go on beside it.
        """
        ahead = self._ahead = Ahead(self.read, ranges, workers=max(1, self._at_once - 2))
        try:
            yield
        finally:
            self._ahead = None
            ahead.close()

    def read_some(self, file: HttpFile, offset: int, buffer: memoryview) -> int:
        """Fills a buffer from an offset on, or a part of it where that is here already; returns how many bytes.

        Raises:
            CheckpointFileError: As :meth:`read`.
        """
        wanted = buffer[: max(0, min(len(buffer), file.nbytes - offset))]
        if not wanted:
            return 0
        ahead = self._ahead
        count = 0 if ahead is None else ahead.take(file, offset, wanted)
        if not count:
            self.read(file, offset, wanted)
            count = len(wanted)
        return count

    def read(self, file: HttpFile, offset: int, buffer: memoryview) -> None:
        """Fills a buffer with the bytes from an offset on.

        Raises:
            CheckpointFileError: Naming file and cause, if they cannot be had.
        """
        attempts = Attempts(file.name, stopped=self._stopped)
        done = 0

        def receive(answer: Answer) -> None:
            nonlocal done
            for chunk in answer.chunks:
                self._check_going_on()
                count = min(len(chunk), len(buffer) - done)
                buffer[done : done + count] = chunk[:count]
                done += count
                self._count(nbytes=len(chunk))
                if self._rate is not None:
                    self._rate.take(len(chunk), self._stopped)
                if count < len(chunk):
                    return  # the rest of a file whose server knows no ranges
            # To the end, and no further: a connection whose answer was read whole serves the next request.
            if done < len(buffer):
                raise BrokenAnswer(f"only {done:,} of {len(buffer):,} bytes were sent")

        try:
            while done < len(buffer):
                try:
                    self._check_going_on()
                    with self._slots:
                        self._ask(file, offset + done, offset + len(buffer) - 1, receive)
                except PROBLEMS as error:
                    self._count(retries=1)
                    attempts.failed(error, done)
        except RequestFailure as failure:
            raise self._explained(file, offset, failure) from failure
        if self.watch is not None:
            self.watch(file, offset, buffer)
        elif self._noting:
            self._unwatched.append((file, offset, len(buffer), digest_of(buffer)))

    def _ask(self, file: HttpFile, first: int, last: int, receive: Callable[[Answer], None]) -> None:
        served, url = self._place(file)
        try:
            self._count(requests=1)
            with opened(file.address, first=first, last=last, served=url) as answer:
                self._check(file, served, url, answer, first)
                receive(answer)
                served.proven = True
        except PROBLEMS as error:
            with served.lock:
                again = served.proven and served.url == url
                if served.url == url:
                    served.url, served.proven = None, False
            run_out = isinstance(error, StatusProblem) and error.status in _RUN_OUT and url != file.address
            if run_out and again:
                # It was good before: a new address costs one question, and no wait.
                self._ask(file, first, last, receive)
                return
            raise

    def _place(self, file: HttpFile) -> tuple[_Served, str]:
        """Where the file is served, and the address at this moment; asked once for all threads."""
        with self._lock:
            served = self._served.setdefault(file.address, _Served(threading.Lock()))
        with served.lock:
            if served.url is None:
                found = located(file.address)
                if found.nbytes is not None and found.nbytes != file.nbytes:
                    raise BrokenAnswer(f"it has {found.nbytes:,} bytes now, and had {file.nbytes:,}")
                if file.sha256 and found.etag and len(found.etag) == 64 and found.etag != file.sha256:
                    raise BrokenAnswer(f"its content is another one now: its tag is {found.etag}, not {file.sha256}")
                served.url, served.proven = found.url, False
            return served, served.url

    def _check(self, file: HttpFile, served: _Served, url: str, answer: Answer, first: int) -> None:
        if answer.start != first:
            raise BrokenAnswer("the whole file was sent where a part was asked for: ranges are ignored")
        if answer.total is not None and answer.total != file.nbytes:
            raise BrokenAnswer(f"it has {answer.total:,} bytes now, and had {file.nbytes:,}")
        if answer.etag is None:
            return
        place = url.partition("?")[0]
        if served.etag is not None and served.etag[0] == place and served.etag[1] != answer.etag:
            raise BrokenAnswer(f"its content has changed: its tag was {served.etag[1]}, and is {answer.etag}")
        served.etag = place, answer.etag

    def _check_going_on(self) -> None:
        if self._stopped.is_set():
            raise RequestFailure(Failure(cause="it was stopped", passing=False), tries=1)

    def _count(self, *, nbytes: int = 0, requests: int = 0, retries: int = 0) -> None:
        with self._lock:
            now = self._received
            self._received = Received(
                nbytes=now.nbytes + nbytes, requests=now.requests + requests, retries=now.retries + retries
            )

    def _explained(self, file: HttpFile, offset: int, failure: RequestFailure) -> CheckpointFileError:
        status = failure.failure.status
        advice = "Run the command again: what is finished is kept."
        if status in (401, 403):
            advice = "For a gated or private model ask for access on its page, then run `hf auth login`."
        elif "ranges are ignored" in failure.cause:
            advice = "Run the command again; if it stays so, add --keep-download, which downloads whole files."
        return CheckpointFileError(
            f"{file.name} could not be read at byte {offset:,}: {failure.cause}.",
            advice=advice,
            path=file.name,
            offset=offset,
            status=status,
            stopped=self._stopped.is_set(),
        )


class Ranged(Protocol):
    """Named tensors, of which some may be read by ranges."""

    @property
    def reader(self) -> RangeReader | None:
        """Who reads them; None if all are in files here."""
        ...

    def ranges(self, names: Iterable[str]) -> list[Range]:
        """Where on a server their bytes are, in this order; nothing of those that are in files here."""
        ...


def expecting(source: Ranged, names: Iterable[str]) -> AbstractContextManager[None]:
    """Within it these tensors are read in this order: over a network they are fetched ahead, neighbours together."""
    reader = source.reader
    return nullcontext() if reader is None else reader.expecting(source.ranges(names))
