"""Tensors of a checkpoint that are not read when a model is opened, but later, and perhaps several times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from coterie.checkpoint.headers import TensorInfo
from coterie.errors import CheckpointFileError
from coterie.records import read_range


class Postponing(Protocol):
    """A keeper of tensors that can put their reading off: :class:`LaterTensors`, or a store's file."""

    def postpone(self, info: TensorInfo, memory: torch.Tensor) -> None:
        """Says that a tensor is to be read later; asked for, its memory is handed out as it is."""
        ...

    def read_postponed(self, infos: Iterable[TensorInfo], into: Callable[[TensorInfo], memoryview]) -> None:
        """Reads tensors that were postponed into their memory.

        Raises:
            CoterieError: If they cannot be read, or are not what they were.
        """
        ...


class LaterTensors:
    """Keeps nothing but the memory of tensors that are read later. A checkpoint has no checksums to compare with."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def postpone(self, info: TensorInfo, memory: torch.Tensor) -> None:
        """As :meth:`~coterie.checkpoint.whole_file.WholeFile.postpone`."""
        self._memory[info.name] = memory

    def take(self, info: TensorInfo) -> torch.Tensor | None:
        """See :class:`~coterie.checkpoint.headers.TensorKeeper`."""
        return self._memory.get(info.name)

    def read_postponed(self, infos: Iterable[TensorInfo], into: Callable[[TensorInfo], memoryview]) -> None:
        """Reads tensors that were postponed into their memory.

        Raises:
            CheckpointFileError: If one cannot be read, or its file has changed.
        """
        for info in sorted(infos, key=lambda one: (str(one.path), one.offset)):
            try:
                got = read_range(info.source, info.offset, into(info))
            except OSError as error:
                raise _unreadable(info, f"cannot be read: {error.strerror}") from error
            if got < info.nbytes:
                raise _unreadable(info, f"ends within {info.name!r}")


def _unreadable(info: TensorInfo, what: str) -> CheckpointFileError:
    return CheckpointFileError(
        f"{info.path} {what}.",
        advice="Check that it is still there, its permissions and the disk.",
        path=info.path,
        tensor=info.name,
    )
