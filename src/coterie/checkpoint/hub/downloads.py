"""One file of a repository, downloaded: gone on with where it stopped, and compared with what the Hub says it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import constants, hf_hub_download, hf_hub_url

from coterie.checkpoint.hub.cache import RepositoryCache
from coterie.checkpoint.hub.checksums import Checksum, checksum_of, is_checksum
from coterie.checkpoint.hub.listing import RemoteFile, is_plain_name
from coterie.records.remote.attempts import Attempts
from coterie.records.remote.failures import PROBLEMS, BrokenAnswer, StatusProblem
from coterie.records.remote.rate import RateLimit
from coterie.records.remote.requests import opened

_PIECE = 2**20

Advance = Callable[[int], object]
"""Told how many more bytes are there; negative where some have to be sent again."""


class OtherBytes(Exception):
    """A file came whole, with other bytes than the Hub states, twice."""


class _Partial:
    """A file that grows as bytes arrive, with its checksum.

    Args:
        path: The file. What it has already is the beginning of the content, if that is known by its checksum.
        nbytes: Size of the content.
        expected: The checksum of the content, if it is known before the first byte.
    """

    def __init__(self, path: Path, nbytes: int, expected: str | None) -> None:
        self._path = path
        self._nbytes = nbytes
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666
        )
        self._file: BinaryIO = os.fdopen(descriptor, "r+b")
        self.offset = 0
        self.checksum = None if expected is None else Checksum(expected, nbytes)
        if self.checksum is None or os.fstat(descriptor).st_size > nbytes:
            self._file.truncate(0)
        else:
            while piece := self._file.read(_PIECE):
                self.checksum.update(piece)
                self.offset += len(piece)

    def append(self, data: bytes) -> None:
        """Adds bytes."""
        self._file.write(data)
        if self.checksum is not None:
            self.checksum.update(data)
        self.offset += len(data)

    def expect(self, tag: str | None) -> None:
        """Takes a checksum that is known with the answer only; without effect after the first byte."""
        if self.checksum is None and self.offset == 0 and tag is not None and is_checksum(tag):
            self.checksum = Checksum(tag, self._nbytes)

    def restart(self) -> None:
        """Throws away what there is."""
        self._file.seek(0)
        self._file.truncate(0)
        self.offset = 0
        if self.checksum is not None:
            self.checksum.restart()

    def close(self) -> None:
        """Closes the file; all of it is on the disk then, so that a power cut leaves no hole under the blob's name."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            with suppress(OSError):  # what could not be flushed fails once more here
                self._file.close()


def download(
    cache: RepositoryCache,
    repo_id: str,
    commit: str,
    file: RemoteFile,
    attempts: Attempts,
    advance: Advance,
    rate: RateLimit | None = None,
) -> Path:
    """Downloads a file into the cache, unless it is there.

    Args:
        cache: The repository's cache.
        repo_id: The repository.
        commit: The commit.
        file: The file.
        attempts: When it is tried again.
        advance: Told about progress.
        rate: Holds the download back. The client's Xet transport knows no such thing, and is not used then.

    Returns:
        Its place in the commit's snapshot.

    Raises:
        RequestFailure: If it cannot be had. What came of a large file is kept, and gone on from at the next try.
        OtherBytes: If its bytes are not what the Hub states. Nothing of it is kept.
        OSError: If the disk is full, or cannot be written. What came of a large file is kept, too.
    """
    pointer = cache.snapshot(commit) / file.name
    if is_whole(pointer, file):
        return pointer
    by_xet = file.in_xet and file.sha256 is not None and rate is None and not constants.HF_HUB_DISABLE_XET
    if by_xet and find_spec("hf_xet"):
        return _by_client(cache, repo_id, commit, file, attempts)
    key = file.sha256 or file.blob_id or f"coterie-{commit}-{file.name.replace('/', '--')}"[:200]
    with cache.locked(key):
        if is_whole(pointer, file):  # another process was quicker
            return pointer
        blob = cache.blob(key)
        if not is_whole(blob, file):
            url = hf_hub_url(repo_id, file.name, revision=commit)
            blob = _by_http(cache, url, key, file, attempts, advance, rate)
        return cache.link(commit, file.name, blob)


def _by_http(
    cache: RepositoryCache,
    url: str,
    key: str,
    file: RemoteFile,
    attempts: Attempts,
    advance: Advance,
    rate: RateLimit | None,
) -> Path:
    for last in (False, True):
        path = cache.partial(key)
        partial = _Partial(path, file.nbytes, file.sha256)
        advance(partial.offset)
        try:
            tag = _receive(partial, url, file, attempts, advance, rate)
        finally:
            partial.close()
            if file.sha256 is None and partial.offset != file.nbytes:
                path.unlink(missing_ok=True)  # nothing says at the next try that it is the same content
        checksum = partial.checksum
        if checksum is None or checksum.right:
            # The name that all clients of the Hub give it: the tag, which is the SHA-256 of a large file.
            name = file.sha256 or (tag if tag and is_plain_name(tag) and "/" not in tag else key)
            blob = cache.blob(name)
            path.replace(blob)
            return blob
        path.unlink(missing_ok=True)
        advance(-partial.offset)
        if last:
            raise OtherBytes(checksum.difference)
    raise AssertionError("the loop returns or raises")


def _receive(
    partial: _Partial, url: str, file: RemoteFile, attempts: Attempts, advance: Advance, rate: RateLimit | None
) -> str | None:
    """Receives what is missing; returns the Hub's tag of the content."""
    tag: str | None = None
    while partial.offset != file.nbytes or file.nbytes == 0:
        before = partial.offset
        try:
            with opened(url, first=before) as answer:
                if answer.start != before:
                    partial.restart()
                    advance(-before)
                tag = answer.etag
                partial.expect(tag if is_checksum(tag) else file.blob_id)
                for chunk in answer.chunks:
                    partial.append(chunk)
                    advance(len(chunk))
                    if rate is not None:
                        rate.take(len(chunk), attempts.stopped)
                    if partial.offset > file.nbytes:
                        break
            _check_size(partial, file.nbytes, advance)
            break
        except PROBLEMS as error:
            if isinstance(error, StatusProblem) and error.status == 416 and before:
                error = BrokenAnswer(f"the server has only {before:,} of its {file.nbytes:,} bytes")
            attempts.failed(error, partial.offset)
    return tag


def _check_size(partial: _Partial, nbytes: int, advance: Advance) -> None:
    if partial.offset == nbytes:
        return
    came = partial.offset
    if came > nbytes:
        partial.restart()
        advance(-came)
        raise BrokenAnswer(f"more than its {nbytes:,} bytes were sent")
    raise BrokenAnswer(f"only {came:,} of its {nbytes:,} bytes were sent")


def _by_client(cache: RepositoryCache, repo_id: str, commit: str, file: RemoteFile, attempts: Attempts) -> Path:
    """Downloads by the client's Xet transport, which is parallel; it takes the lock and shows progress by itself."""
    for last in (False, True):
        while True:
            try:
                pointer = Path(hf_hub_download(repo_id, file.name, revision=commit))
                break
            except Exception as error:  # code in Rust raises what it likes
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # of the disk
                attempts.failed(error)
        checksum = checksum_of(pointer, str(file.sha256))
        if checksum.right:
            return pointer
        cache.remove(pointer)
        if last:
            raise OtherBytes(checksum.difference)
    raise AssertionError("the loop returns or raises")


def is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether a file is here, with the size that it should have."""
    try:
        return path.stat().st_size == file.nbytes
    except OSError:
        return False
