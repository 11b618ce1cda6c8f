"""A repository of the Hub: its small files on this machine, its headers read over the network, its shards on demand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import tqdm, validate_repo_id

from coterie.checkpoint.formats import SIDE_FILES, STORE, unread_format
from coterie.checkpoint.headers import TensorInfo
from coterie.checkpoint.hub.cache import RepositoryCache
from coterie.checkpoint.hub.checksums import checksum_of, is_checksum
from coterie.checkpoint.hub.downloads import OtherBytes, download, is_whole
from coterie.checkpoint.hub.listing import Listing, RemoteFile, is_plain_name, list_repository
from coterie.checkpoint.hub.remote_headers import RemoteHeader, read_remote_header
from coterie.errors import CheckpointFileError, CheckpointNotFoundError
from coterie.records.remote import HttpFile, RangeReader, RateLimit
from coterie.records.remote.attempts import PATIENCE, Attempts
from coterie.records.remote.failures import Failure, RequestFailure
from coterie.records.remote.together import all_together

_log = logging.getLogger("coterie.hub")
_WORKERS = 4
"""Requests at once for headers and small files."""

_TRIES_IF_CACHED = 2
"""Who has everything here need not wait long for a Hub that does not answer."""

_LOGIN = "For a gated or private model ask for access on its page, then run `hf auth login`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository at one commit.

    Attributes:
        repo_id: Its id.
        commit: The commit.
        listing: Its files, or None if the Hub was not asked: only what is in the cache can be used then.
        cache: Its part of the Hub's cache.
        rate: Holds back whatever is read of its files; None for no limit.
    """

    repo_id: str
    commit: str
    listing: Listing | None
    cache: RepositoryCache
    rate: RateLimit | None = None

    @property
    def directory(self) -> Path:
        """Where its files are, or will be."""
        return self.cache.snapshot(self.commit)

    @property
    def holds_store(self) -> bool:
        """Whether it holds a store, and not a checkpoint."""
        return self.has(STORE)

    def has(self, name: str) -> bool:
        """Whether the repository has a file, here or at the Hub."""
        return (self.directory / name).is_file() or (self.listing is not None and name in self.listing.files)

    def is_here(self, name: str) -> bool:
        """Whether a file is on this machine, whole."""
        known = None if self.listing is None else self.listing.files.get(name)
        path = self.directory / name
        return path.exists() if known is None else is_whole(path, known)

    def file_names(self) -> list[str]:
        """Names of its files, as far as they are known."""
        here = (path.relative_to(self.directory).as_posix() for path in self.directory.rglob("*") if path.is_file())
        return sorted({*here, *(() if self.listing is None else self.listing.files)})

    def checksum_problem(self, name: str, advance: Callable[[int], object]) -> str | None:
        """Compares a file that is here with the Hub's checksum, which is also the name of its blob in the cache.

        Args:
            name: The file.
            advance: Told how many more bytes were read.

        Returns:
            What is wrong, or None if nothing is, or no checksum is known.
        """
        path = self.directory / name
        listed = None if self.listing is None else self.listing.files.get(name)
        expected = path.resolve().name if listed is None else listed.sha256 or listed.blob_id
        if expected is None or not is_checksum(expected):
            return None
        checksum = checksum_of(path, expected, advance)
        return None if checksum.right else checksum.difference

    def download_nbytes(self, names: Iterable[str]) -> dict[str, int]:
        """Of those files that are not here, the bytes that still have to be downloaded."""
        files = [self._file(name) for name in dict.fromkeys(names) if not self.is_here(name)]
        return {one.name: max(0, one.nbytes - self.cache.kept(one.sha256)) for one in files}

    def download_side_files(self) -> None:
        """Downloads configuration, tokenizer and whatever else is small.

        Raises:
            CheckpointFileError: If one cannot be had.
            DiskSpaceError: If the cache's disk has no room for them.
        """
        assert self.listing is not None
        names = [one for one in self.listing.files if any(fnmatch(one, pattern) for pattern in SIDE_FILES)]
        missing = [name for name in names if not self.is_here(name)]
        self.cache.check_fits(sum(self.download_nbytes(missing).values()))

        def fetch(name: str, stopped: threading.Event) -> None:
            self._download(name, Attempts(name, stopped=stopped), _untold)

        all_together(fetch, missing, workers=_WORKERS)

    def download(self, names: Iterable[str]) -> None:
        """Downloads files, one after the other, with the client's bars of progress.

        Raises:
            CheckpointFileError: If one cannot be had, or is not what the Hub says.
            DiskSpaceError: If the cache's disk has no room for them.
        """
        needed = self.download_nbytes(names)
        if not needed:
            return
        self.cache.check_fits(sum(needed.values()))
        for name in needed:
            file = self._file(name)
            with tqdm(desc=name[-40:], total=file.nbytes, unit="B", unit_scale=True, disable=None) as bar:  # type: ignore[no-untyped-call]
                self._download(name, Attempts(name), bar.update)

    def headers(self, names: Collection[str], reader: RangeReader | None = None) -> dict[str, dict[str, TensorInfo]]:
        """Reads headers of files that are not here, a few at once.

        Args:
            names: The files.
            reader: Reads their tensors by ranges later; None if the files are downloaded before.

        Raises:
            CheckpointFileError: If one cannot be read, or is not a header.
        """
        files = [self._file(name) for name in sorted(names)]
        headers = all_together(self._header, files, workers=_WORKERS)
        return {
            file.name: dict(header.tensors) if reader is None else self._by_ranges(file, header, reader)
            for file, header in zip(files, headers, strict=True)
        }

    def remote_file(self, name: str, reader: RangeReader, *, header: bytes = b"") -> HttpFile:
        """A file as what bytes come from, by ranges.

        Args:
            name: The file.
            reader: Reads it.
            header: Its first bytes, if they were read before.

        Raises:
            CheckpointFileError: If the repository has no such file, or the Hub was not asked for its files.
        """
        file = self._file(name)
        return HttpFile(
            address=hf_hub_url(self.repo_id, file.name, revision=self.commit),
            name=f"{file.name} of {self.repo_id}",
            nbytes=file.nbytes,
            sha256=file.sha256,
            header=header,
            reader=reader,
        )

    def need(self, name: str) -> None:
        """Finds out whether a file could be had that is not here.

        Raises:
            CheckpointFileError: As :meth:`remote_file`.
        """
        self._file(name)

    def _by_ranges(self, file: RemoteFile, header: RemoteHeader, reader: RangeReader) -> dict[str, TensorInfo]:
        remote = self.remote_file(file.name, reader, header=header.content)
        return {name: replace(info, remote=remote) for name, info in header.tensors.items()}

    def _header(self, file: RemoteFile, stopped: threading.Event) -> RemoteHeader:
        url, path = hf_hub_url(self.repo_id, file.name, revision=self.commit), self.directory / file.name
        attempts = Attempts(file.name, stopped=stopped)
        with self._explained(f"The header of {file.name} of {self.repo_id} could not be read", file.name):
            try:
                return read_remote_header(url, path, file.nbytes, attempts, self.rate)
            except CheckpointFileError:
                # Nothing says what a part of a file should be: what is no header may have been one when it was sent.
                return read_remote_header(url, path, file.nbytes, attempts, self.rate)

    def _download(self, name: str, attempts: Attempts, advance: Callable[[int], object]) -> None:
        with self._explained(f"{name} of {self.repo_id} could not be downloaded", name):
            download(self.cache, self.repo_id, self.commit, self._file(name), attempts, advance, self.rate)

    def _file(self, name: str) -> RemoteFile:
        if self.listing is None:
            raise CheckpointFileError(
                f"{name} of {self.repo_id} is not in the Hub's cache, {self.cache.root}, and nothing may be "
                "downloaded.",
                advice="Run again without --offline, and with a connection to the Hub.",
                path=self.directory / name,
                repo_id=self.repo_id,
            )
        if name not in self.listing.files:
            raise CheckpointFileError(
                f"{self.repo_id} has no {name} at {self.commit[:12]}, which its "
                f"{'manifest' if self.holds_store else 'index'} names.",
                advice="The repository is not complete; tell its owner, or choose another --revision.",
                path=self.directory / name,
                repo_id=self.repo_id,
            )
        return self.listing.files[name]

    @contextmanager
    def _explained(self, what: str, name: str) -> Iterator[None]:
        """Turns failures into errors that name the file, the cause and what is kept."""
        facts = {"path": self.directory / name, "repo_id": self.repo_id}
        try:
            yield
        except OtherBytes as error:
            raise CheckpointFileError(
                f"{name} of {self.repo_id} arrived twice with other bytes than the Hub says: {error}. It was removed.",
                advice="Run the command again. If it stays so, a proxy or mirror in between changes files.",
                **facts,
            ) from error
        except OSError as error:
            raise self.cache.explained(error) from error
        except RequestFailure as error:
            again = "Run the command again: files that are whole are kept"
            kept = self.cache.kept(self.listing.files[name].sha256) if self.listing else 0
            raise CheckpointFileError(
                f"{what}: {error.cause}.",
                advice=_LOGIN
                if error.failure.status in (401, 403)
                else f"{again}, and so are {kept:,} bytes of this one."
                if kept
                else f"{again}.",
                status=error.failure.status,
                **facts,
            ) from error


def _untold(nbytes: int) -> None:
    """For files so small that nobody waits for them."""


def find_repository(
    repo_id: str, *, revision: str | None = None, offline: bool = False, rate: RateLimit | None = None
) -> Repository:
    """Finds a repository and downloads its small files.

    Where the Hub cannot be asked, what the cache has of it is used.

    Args:
        repo_id: Its id.
        revision: Branch, tag or commit.
        offline: Use only what is in the cache.
        rate: Holds back whatever is read of its files, the small ones too.

    Raises:
        CheckpointNotFoundError: If there is none that can be read.
        CheckpointFileError: If a small file cannot be had.
        UnsupportedError: If its weights are in a format that is not read; only the list of its files was read then.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise _not_found(repo_id, revision, f"{error}") from error
    if revision is not None and not is_plain_name(revision):
        raise _not_found(repo_id, revision, f"{ascii(revision)[:80]} is no name of a revision")
    cache = RepositoryCache(repo_id)
    if offline or constants.HF_HUB_OFFLINE:
        return _cached(cache, repo_id, revision)
    commit = _usable_commit(cache, revision)
    try:
        listing = list_repository(repo_id, revision, tries=PATIENCE.tries if commit is None else _TRIES_IF_CACHED)
    except RequestFailure as error:
        if commit is None or error.failure.code == "RevisionNotFound":
            raise _unlisted(repo_id, revision, error.failure, error.cause) from error
        _log.warning("%s: %s. What the cache has of it is used (commit %s).", repo_id, error.cause, commit[:12])
        return Repository(repo_id=repo_id, commit=commit, listing=None, cache=cache)
    problem = unread_format(repo_id, listing.files, base_models=listing.base_models)
    if problem is not None and STORE not in listing.files:
        raise problem
    cache.remember(revision, listing.commit)
    cache.remove_stale()
    found = Repository(repo_id=repo_id, commit=listing.commit, listing=listing, cache=cache, rate=rate)
    found.download_side_files()
    return found


def _usable_commit(cache: RepositoryCache, revision: str | None) -> str | None:
    """The commit whose small files are in the cache, or None."""
    commit = cache.known_commit(revision)
    return commit if commit is not None and (cache.snapshot(commit) / "config.json").exists() else None


def _cached(cache: RepositoryCache, repo_id: str, revision: str | None) -> Repository:
    commit = _usable_commit(cache, revision)
    if commit is None:
        raise CheckpointNotFoundError(
            f"{repo_id!r} is not a directory here, and the Hub's cache, {cache.root}, has nothing of it"
            f"{'' if revision is None else f' at {revision!r}'}.",
            advice="Check the path; with --offline, or HF_HUB_OFFLINE set, the Hub is not asked.",
            repo_id=repo_id,
            revision=revision,
        )
    return Repository(repo_id=repo_id, commit=commit, listing=None, cache=cache)


def _unlisted(repo_id: str, revision: str | None, failure: Failure, cause: str) -> CheckpointNotFoundError:
    if failure.code == "RevisionNotFound":
        return _not_found(repo_id, revision, f"it has no revision {revision!r} ({cause})")
    if failure.status in (401, 403, 404):
        return _not_found(repo_id, revision, cause)
    return CheckpointNotFoundError(
        f"{repo_id!r} is not a directory here, and the Hub could not be asked: {cause}.",
        advice="Check the path, or the network, and run the command again; with --offline only what is in the Hub's "
        "cache is used.",
        repo_id=repo_id,
        revision=revision,
        status=failure.status,
    )


def _not_found(repo_id: str, revision: str | None, cause: str) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(
        f"{repo_id!r} is neither a directory here nor a repository of the Hub that you can read: {cause}.",
        advice="Check the name and the revision; for a gated or private model run `hf auth login`.",
        repo_id=repo_id,
        revision=revision,
    )
