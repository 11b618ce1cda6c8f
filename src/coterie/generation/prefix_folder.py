"""A directory of pieces of prompts: its owner's alone, of bounded size, and sound whoever dies while writing to it.

Every file is written under another name and gets its own when it is whole and on the disk. Several processes may use
one directory: none of them changes a file that is there. What is in the way of a new one goes first: of the pieces that
no other follows, the one that saves the fewest seconds for its bytes and the time since it was used last.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import pbkdf2_hmac, sha256
from pathlib import Path

from coterie.errors import CoterieError, OutputError, StoreBusyError, UnsupportedError, UsageError
from coterie.files.regular import open_regular, read_bounded
from coterie.files.safetensors_header import LENGTH_BYTES
from coterie.generation.prefix_files import DamagedPieceError, PieceFacts, facts_of, file_nbytes, piece_of, write_piece
from coterie.hf.cache_states import Stretch
from coterie.store.disk import Disk
from coterie.store.syscalls import SystemCalls

_SECRET = "secret"
_SECRET_BYTES = 32
_FILE = re.compile(r"([0-9a-f]{64})\.safetensors")
_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.[A-Za-z0-9.]{1,80}\.partial")
_HEAD_BYTES = 4 << 20
"""A header that is longer is none."""
_ROUNDS = 200_000
"""Of a digest of what could be guessed: a tenth of a second."""
_PATIENCE_S = 10.0
_POLL_S = 0.002
_LEAST_S = 1e-6


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file. When it was used last is in nanoseconds since 1970."""

    nbytes: int
    used: int
    after: str
    root: str
    seconds: float

    def burden(self, now: int) -> float:
        """Bytes times the time since it was used, for every second that it saves: the largest goes first."""
        return self.nbytes * max(1, now - self.used) / max(self.seconds, _LEAST_S)


class _OwnDisk(Disk):
    """Writes files that nobody else may read, under names that no other process has."""

    def __init__(self, root: Path, calls: SystemCalls | None = None) -> None:
        super().__init__(root, calls)
        self._alone = False

    def partial(self, name: str) -> Path:
        return self.path(f".{secrets.token_hex(4)}.{name}.partial")

    def create(self, path: Path) -> int:
        # Whoever tidies up takes a file that is not locked for one that somebody has left.
        with self.alone():
            return self.calls.create_own(path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, no other process tidies up, or begins a file."""
        if self._alone:
            yield
            return
        end = time.monotonic() + _PATIENCE_S
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            while True:
                try:
                    self.calls.lock(descriptor)
                    break
                except StoreBusyError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(_POLL_S)
            self._alone = True
            yield
        finally:
            self._alone = False
            os.close(descriptor)


class PrefixFolder:
    """The directory. Several threads may use it.

    Args:
        path: The directory; it is made if it is not there.
        limit: Bytes that its files may take together.
        calls: The system calls; tests pass one that fails.

    Attributes:
        path: That given.
        limit: That given.
        damaged: Files that were not what was written.

    Raises:
        UsageError: If it is somebody else's, open to others, or no directory.
        OutputError: If it cannot be used.
        UnsupportedError: If files have no owners on this system.
    """

    def __init__(self, path: str | Path, limit: int, *, calls: SystemCalls | None = None) -> None:
        if limit < 1:
            raise UsageError(f"Beginnings of prompts cannot be kept in {limit} bytes.", got=limit)
        self.path = Path(path).absolute()
        self.limit = limit
        self.damaged = 0
        self._disk = _OwnDisk(self.path, calls)
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        # What cannot be removed is never looked at again.
        self._bad: set[str] = set()
        with _explained(self.path):
            _check_own(self.path)
            with self._disk.alone():
                self._sweep()
                self._secret = self._read_secret() or self._make_secret()
            self._scan()

    @property
    def nbytes(self) -> int:
        """Bytes that its files take, as far as is known."""
        # Without the lock: who looks does not wait for the disk.
        return sum(entry.nbytes for entry in tuple(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def digest(self, *parts: bytes) -> bytes:
        """A digest of some bytes that says nothing to whoever does not know the directory's secret."""
        made = hmac.new(self._secret, digestmod=sha256)
        for part in parts:
            made.update(len(part).to_bytes(8, "little"))
            made.update(part)
        return made.digest()

    def slow_digest(self, text: str) -> bytes:
        """Likewise, of what could be guessed: every guess takes long, also for whoever knows the secret."""
        return pbkdf2_hmac("sha256", text.encode(), self._secret, _ROUNDS)

    def read(self, name: str, *, model: str, begin: int, end: int) -> tuple[PieceFacts, Stretch] | None:
        """A piece; None if it is not there.

        Args:
            name: What it is called.
            model: Digest of the model that it has to be of.
            begin: Where it has to begin.
            end: Where it has to end.

        Raises:
            DamagedPieceError: If the file is not what was written; it is gone then.
            OSError: If it cannot be read.
        """
        if name in self._bad:
            return None
        try:
            facts, piece = piece_of(self._content(name))
            if (facts.name, facts.model, facts.begin, facts.end) != (name, model, begin, end):
                raise DamagedPieceError("it is that of another piece")
        except FileNotFoundError:
            return None
        except DamagedPieceError:
            self.damaged += 1
            self._discard(name)
            raise
        return facts, piece

    def write(self, facts: PieceFacts, piece: Stretch) -> int:
        """Keeps a piece, if there is room beside what it follows; returns its bytes, 0 if it is not kept.

        Raises:
            CoterieError: If it cannot be written.
        """
        with self._lock:
            self._scan()
            if facts.name in self._entries or facts.name in self._bad:
                return 0
            if facts.after and facts.after not in self._entries:
                return 0  # nobody would ever come to it
            if not self._make_room(file_nbytes(facts, piece), but=facts.after):
                return 0
            nbytes = write_piece(self._disk, f"{facts.name}.safetensors", facts, piece)
            self._entries[facts.name] = _Entry(nbytes, time.time_ns(), facts.after, facts.root, facts.seconds)
            return nbytes

    def use(self, name: str) -> bool:
        """Says that a piece was of use; returns whether it is there."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                return False
            try:
                os.utime(self._file(name), follow_symlinks=False)
            except FileNotFoundError:
                del self._entries[name]
                return False
            except OSError:
                pass  # then it goes sooner
            self._entries[name] = replace(entry, used=time.time_ns())
            return True

    def forget(self, root: str | None = None) -> None:
        """Removes all pieces with a beginning; all, without one.

        Raises:
            CoterieError: If one cannot be removed.
        """
        with self._lock:
            self._scan()
            for name in [name for name, entry in self._entries.items() if root in (None, entry.root)]:
                self._remove(name)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    def _content(self, name: str) -> bytearray:
        descriptor = open_regular(self._file(name), links=False)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            found = os.fstat(descriptor)
            if found.st_uid != os.geteuid() or found.st_size > self.limit:
                raise DamagedPieceError("it is somebody else's, or larger than all may be")
            data = bytearray(found.st_size)
            view, done = memoryview(data), 0
            while done < len(data):
                count = file.readinto(view[done:])
                if not count:
                    raise DamagedPieceError("it ends before its end")
                done += count
        return data

    def _discard(self, name: str) -> None:
        """Removes a file that is of no use, or looks at it no more."""
        try:
            self._disk.remove(f"{name}.safetensors")
        except CoterieError:
            self._bad.add(name)

    def _remove(self, name: str) -> None:
        self._disk.remove(f"{name}.safetensors")
        self._entries.pop(name, None)

    def _make_room(self, nbytes: int, *, but: str) -> bool:
        """Removes files until there is room for another one; returns whether there is."""
        total, now = sum(entry.nbytes for entry in self._entries.values()), time.time_ns()
        while total + nbytes > self.limit:
            followed = {entry.after for entry in self._entries.values()}
            leaves = [name for name in self._entries if name not in followed and name != but]
            if not leaves or nbytes > self.limit:
                return False
            name = max(leaves, key=lambda one: self._entries[one].burden(now))
            total -= self._entries[name].nbytes
            self._remove(name)
        return True

    def _scan(self) -> None:
        """Sees what is there: other processes write and remove, too. What nobody can come to any more is removed."""
        found: dict[str, _Entry] = {}
        for name, entry in _listed(self.path):
            known = self._entries.get(name)
            if name in self._bad:
                continue
            if known is not None and known.nbytes == entry.st_size:
                found[name] = replace(known, used=max(known.used, entry.st_mtime_ns))
                continue
            try:
                facts = self._facts(name, entry.st_size)
            except FileNotFoundError:
                continue
            except (DamagedPieceError, OSError):
                self.damaged += 1
                self._discard(name)
                continue
            found[name] = _Entry(entry.st_size, entry.st_mtime_ns, facts.after, facts.root, facts.seconds)
        while lost := [name for name, one in found.items() if one.after and one.after not in found]:
            for name in lost:
                self._discard(name)
                del found[name]
        self._entries = found

    def _facts(self, name: str, size: int) -> PieceFacts:
        with os.fdopen(open_regular(self._file(name), links=False), "rb") as file:
            length = file.read(LENGTH_BYTES)
            facts = facts_of(length + file.read(min(_HEAD_BYTES, int.from_bytes(length, "little"))), size)
        if facts.name != name:
            raise DamagedPieceError("it is that of another piece")
        return facts

    def _read_secret(self) -> bytes | None:
        try:
            read = read_bounded(self.path / _SECRET, _SECRET_BYTES, links=False)
        except FileNotFoundError:
            return None
        except OSError:
            read = b""
        return read if len(read) == _SECRET_BYTES else None

    def _make_secret(self) -> bytes:
        """Also after the old one is lost: then no piece can be found any more."""
        for name, _ in _listed(self.path):
            self._remove(name)
        made = secrets.token_bytes(_SECRET_BYTES)
        self._disk.remove(_SECRET)
        self._disk.write(_SECRET, made)
        return made

    def _sweep(self) -> None:
        """Removes what processes that were killed have left."""
        for partial in [entry.name for entry in os.scandir(self.path) if _PARTIAL.fullmatch(entry.name)]:
            with suppress(OSError, StoreBusyError):
                descriptor = open_regular(self.path / partial, links=False)
                try:
                    self._disk.calls.lock(descriptor)  # whoever writes it holds that
                    self._disk.calls.unlink(self.path / partial)
                finally:
                    os.close(descriptor)


def _listed(path: Path) -> Iterable[tuple[str, os.stat_result]]:
    """The names of the pieces in a directory, and what their files are."""
    with os.scandir(path) as entries:
        for entry in entries:
            match = _FILE.fullmatch(entry.name)
            if match is None:
                continue
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield match[1], found


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be used for beginnings of prompts: {error.strerror or error}.",
            advice="Check the path and its permissions.",
            path=path,
            errno=error.errno,
        ) from error


def check_folder(path: Path) -> None:
    """Finds before any work is done that a directory cannot be used.

    Raises:
        CoterieError: As :class:`PrefixFolder`.
    """
    with _explained(path):
        _check_own(path)


def _check_own(path: Path) -> None:
    """Makes the directory, or sees to it that it is this user's alone.

    Raises:
        UsageError: If it is not, or no directory.
        UnsupportedError: If files have no owners on this system.
        OSError: If it cannot be made.
    """
    if not hasattr(os, "geteuid"):
        raise UnsupportedError("Files have no owners on this system: nothing would keep others from reading prompts.")
    with suppress(FileExistsError):
        path.mkdir(0o700)
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise UsageError(f"{path} is a symbolic link.", advice="Name the directory that it leads to.", path=path)
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path} is not a directory.", path=path)
    if found.st_uid != os.geteuid():
        raise UsageError(f"{path} belongs to another user.", advice="Name a directory of your own.", path=path)
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UsageError(
            f"Others can look into {path}, and prompts could be read from what is kept there.",
            advice=f"Run: chmod 700 {path}",
            path=path,
        )
