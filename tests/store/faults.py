"""System calls that fail on purpose, and a model of what a power cut leaves on the disk."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.store.syscalls import SystemCalls

EVERY = [3, pytest.param(1, marks=pytest.mark.slow)]
"""Parameters of tests that stop at one change of the disk after the other: at every third, and slowly at each."""

CALLS = tuple(name for name in vars(SystemCalls) if not name.startswith("_"))


SKIPPED = ("sync", "sync_directory", "start_writeback", "finish_writeback")
"""Calls about when bytes reach the disk: they cost milliseconds each and change nothing that a test can see."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the library catches it, and no call after it has an effect."""


class WatchedCalls(SystemCalls):
    """Calls ``before(index, name, arguments)`` ahead of every call."""

    def __init__(self) -> None:
        self.count = 0
        self._counting = threading.Lock()

    def before(self, index: int, name: str, arguments: tuple[Any, ...]) -> None:
        """Raises to make the call fail."""

    def after(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Sees the result."""

    def __getattribute__(self, name: str) -> Any:
        if name not in CALLS:
            return super().__getattribute__(name)
        return functools.partial(self._call, name)

    def _call(self, name: str, *arguments: Any) -> Any:
        with self._counting:
            index = self.count
            self.count += 1
        self.before(index, name, arguments)
        plain: Callable[..., Any] = getattr(SystemCalls, name)
        result = None if name in SKIPPED else plain(self, *arguments)
        self.after(name, arguments, result)
        return result


class FailingCalls(WatchedCalls):
    """Fails call number ``at`` with an errno; a failing write first writes half of its bytes."""

    def __init__(self, at: int, code: int) -> None:
        super().__init__()
        self.at = at
        self.code = code

    def before(self, index: int, name: str, arguments: tuple[Any, ...]) -> None:
        if index == self.at:
            half_write(self, name, arguments)
            raise OSError(self.code, os.strerror(self.code))


class KillingCalls(WatchedCalls):
    """The process dies at call number ``at``, in the middle of it if it is a write."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def before(self, index: int, name: str, arguments: tuple[Any, ...]) -> None:
        if index == self.at:
            half_write(self, name, arguments)
        if index >= self.at:
            raise Killed


class ShortWrites(WatchedCalls):
    """Every write takes at most 1000 bytes."""

    def _call(self, name: str, *arguments: Any) -> Any:
        if name == "write":
            fd, data, offset = arguments
            return super()._call(name, fd, data[:1000], offset)
        return super()._call(name, *arguments)


def half_write(calls: SystemCalls, name: str, arguments: tuple[Any, ...]) -> None:
    if name == "write":
        fd, data, offset = arguments
        SystemCalls.write(calls, fd, data[: len(data) // 2], offset)


class PowerCuts(WatchedCalls):
    """Keeps, after every call, what a power cut would leave at worst: only synced bytes under only synced names.

    ``images`` are distinct states as relative name → bytes, or None for a directory.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = root
        self._inodes: dict[int, tuple[int, int]] = {}
        self._synced: dict[tuple[int, int], bytes] = {}
        self._names: dict[Path, dict[str, tuple[int, int] | None]] = {}
        self.images: list[dict[str, bytes | None]] = []
        if root.exists():
            for directory in (root, *(path for path in root.rglob("*") if path.is_dir())):
                for path in directory.iterdir():
                    if path.is_file():
                        self._synced[_inode(path.stat())] = path.read_bytes()
                self._names[directory] = _entries(directory)

    def after(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name in ("create", "create_own", "open"):
            # A new file may get the number of one that was removed.
            if os.fstat(result).st_size == 0:
                self._synced[_inode(os.fstat(result))] = b""
        elif name == "sync":
            self._synced[_inode(os.fstat(arguments[0]))] = Path(f"/proc/self/fd/{arguments[0]}").read_bytes()
        elif name == "sync_directory":
            self._names[arguments[0]] = _entries(arguments[0])
        image: dict[str, bytes | None] = {}
        if self._root in self._names or self._root.name in self._names.get(self._root.parent, {}):
            self._collect(self._root, image)
        if not self.images or self.images[-1] != image:
            self.images.append(image)

    def _collect(self, directory: Path, image: dict[str, bytes | None]) -> None:
        for name, inode in self._names.get(directory, {}).items():
            relative = (directory / name).relative_to(self._root).as_posix()
            image[relative] = None if inode is None else self._synced.get(inode, b"")
            if inode is None:
                self._collect(directory / name, image)


def restore(image: dict[str, bytes | None], root: Path) -> None:
    """Makes a directory with the content of an image."""
    root.mkdir(parents=True)
    for name in sorted(image):
        data = image[name]
        if data is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).write_bytes(data)


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _entries(directory: Path) -> dict[str, tuple[int, int] | None]:
    return {path.name: None if path.is_dir() else _inode(path.stat()) for path in directory.iterdir()}
