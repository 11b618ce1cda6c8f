"""A file of tensors that is compared with its checksum while it is read, before any of its tensors is used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
import xxhash

from coterie.checkpoint.headers import TensorInfo
from coterie.errors import ChecksumError, ReadError
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.records import LocalFile
from coterie.spec import FileStamp, OpenBytes

_PIECE = 8 << 20
_AHEAD = 4 * _PIECE


class WholeFile:
    """A file whose tensors are read together, in the order in which they lie, when the first of them is asked for.

    Every byte is read once: those of tensors into memory of their own, aligned as torch aligns it, others only to be
    hashed. A tensor is handed out once, so that nothing is in memory twice; asked for again, it is read from the file.
    Of tensors that are read later (:meth:`postpone`) a checksum is noted, which they have to have then. Safe to use
    from several threads.

    Args:
        path: The file; also an attribute.
        nbytes: Its size.
        checksum: xxh3-128 of its bytes as 32 hex digits.
        stamp: What it was when it was opened.
    """

    def __init__(self, path: Path, *, nbytes: int, checksum: str, stamp: FileStamp | None) -> None:
        self.path = path
        self._nbytes = nbytes
        self._checksum = checksum
        self._stamp = stamp
        self._wanted: dict[str, TensorInfo] = {}
        self._postponed: dict[str, torch.Tensor] = {}
        self._digests: dict[str, str] = {}
        self._kept: dict[str, torch.Tensor] | None = None
        self._lock = threading.Lock()

    def want(self, info: TensorInfo) -> None:
        """Says that this tensor of its will be asked for."""
        self._wanted[info.name] = info

    def postpone(self, info: TensorInfo, memory: torch.Tensor) -> None:
        """Says that a tensor is to be read later; asked for, its memory is handed out as it is.

        Args:
            info: One of the file's.
            memory: Of its shape and dtype; nothing is written into it before :meth:`read_postponed`.
        """
        with self._lock:
            self._wanted[info.name] = info
            self._postponed[info.name] = memory

    def read_postponed(self, infos: Iterable[TensorInfo], into: Callable[[TensorInfo], memoryview]) -> None:
        """Reads tensors that were postponed, and compares them with what they were when the file was checked.

        Args:
            infos: They; the file has been checked since they were postponed.
            into: The memory of each, as bytes.

        Raises:
            ChecksumError: If one differs.
            ReadError: As :meth:`take`.
        """
        with self._reading() as file:
            for info in sorted(infos, key=lambda one: one.offset):
                digest = xxhash.xxh3_128()
                self._fill(file, into(info), info.offset, digest)
                if digest.hexdigest() != self._digests[info.name]:
                    raise self._differs(self._digests[info.name], digest.hexdigest(), f" at {info.name!r}")

    def take(self, info: TensorInfo) -> torch.Tensor | None:
        """See :class:`~coterie.checkpoint.headers.TensorKeeper`.

        Raises:
            ChecksumError: If the file differs from its checksum.
            ReadError: If it cannot be read, or has changed since it was opened.
        """
        with self._lock:
            if self._kept is None:
                self._kept = self._read(self._wanted.values())
            if info.name in self._postponed:
                return self._postponed[info.name]
            return self._kept.pop(info.name, None)

    def check(self) -> None:
        """Compares the file with its checksum and keeps nothing of it. Raises as :meth:`take`."""
        self._read(())

    def let_go(self) -> None:
        """Drops what nobody has asked for."""
        with self._lock:
            if self._kept is not None:
                self._kept.clear()

    def _read(self, wanted: Iterable[TensorInfo]) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        digest = xxhash.xxh3_128()
        scratch = memoryview(bytearray(min(_PIECE, self._nbytes)))
        with self._reading() as file:
            position = 0
            for info in sorted(wanted, key=lambda one: one.offset):
                if info.offset < position or not info.nbytes:
                    continue  # it has no bytes of its own
                position = self._pass(file, scratch, position, info.offset, digest)
                if info.name in self._postponed:
                    own = xxhash.xxh3_128()
                    position = self._pass(file, scratch, position, info.offset + info.nbytes, digest, own)
                    self._digests[info.name] = own.hexdigest()
                    continue
                raw = torch.empty(info.nbytes, dtype=torch.uint8)
                position = self._fill(file, raw.numpy().data, position, digest)
                tensors[info.name] = raw.view(TORCH_DTYPES[info.dtype]).view(info.shape)
            self._pass(file, scratch, position, self._nbytes, digest)
        if digest.hexdigest() != self._checksum:
            raise self._differs(self._checksum, digest.hexdigest())
        return tensors

    @contextmanager
    def _reading(self) -> Iterator[OpenBytes]:
        try:
            with closing(LocalFile(self.path, self._stamp).open("in order")) as file:
                yield file
        except OSError as error:
            raise ReadError(
                f"{self.path} cannot be read: {error.strerror or error}.",
                advice="Check the disk, and that nobody writes to the store; then open the model again.",
                path=self.path,
            ) from error

    def _differs(self, expected: str, got: str, where: str = "") -> ChecksumError:
        return ChecksumError(
            f"{self.path} differs from its checksum{where}: expected {expected}, got {got}.",
            advice="The file is damaged: copy it or extract the store again.",
            path=self.path,
            expected=expected,
            got=got,
        )

    def _pass(self, file: OpenBytes, scratch: memoryview, position: int, end: int, *digests: xxhash.xxh3_128) -> int:
        """Hashes the bytes up to an end and keeps none of them; returns that end."""
        while position < end:
            position = self._fill(file, scratch[: min(len(scratch), end - position)], position, *digests)
        return position

    def _fill(self, file: OpenBytes, buffer: memoryview, position: int, *digests: xxhash.xxh3_128) -> int:
        """Reads and hashes the next bytes; returns the position behind them. They leave the page cache."""
        done = 0
        while done < len(buffer):
            file.will_read(position + _PIECE, _AHEAD)
            count = file.read_at(buffer[done : done + _PIECE], position)
            if not count:
                raise OSError(None, f"it ends at byte {position} of {self._nbytes}")
            for digest in digests:
                digest.update(buffer[done : done + count])
            file.drop(position, count)
            done += count
            position += count
        return position
