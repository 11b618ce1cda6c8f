"""Where the tensors of a checkpoint's files lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from coterie.errors import CheckpointFileError
from coterie.files.regular import regular_file
from coterie.files.safetensors_header import (
    CHECKPOINT_HEADER,
    HeaderEntry,
    HeaderProblem,
    HeaderText,
    parse_entries,
    read_header_text,
)
from coterie.records import LocalFile
from coterie.records.remote.http_file import HttpFile
from coterie.spec import ByteSource, FileStamp

if TYPE_CHECKING:
    import torch


class TensorKeeper(Protocol):
    """Whoever has read tensors of a file already, and keeps them until they are asked for."""

    def take(self, info: TensorInfo) -> torch.Tensor | None:
        """The tensor, which is not kept any longer; None if it is not there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: Name in the checkpoint.
        path: The file.
        dtype: safetensors' name of the dtype.
        shape: Shape.
        offset: Byte offset in the file.
        nbytes: Size in bytes.
        stamp: What the file was when its header was read; None if that was somewhere else. Another file is not read.
        keeper: Who is asked for the tensor before the file is.
        remote: The file of a server that it is read from by ranges; None if the file is, or will be, at ``path``.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    stamp: FileStamp | None = field(default=None, compare=False, repr=False)
    keeper: TensorKeeper | None = field(default=None, compare=False, repr=False)
    remote: HttpFile | None = field(default=None, compare=False, repr=False)

    @property
    def source(self) -> ByteSource:
        """Where its bytes come from."""
        return LocalFile(self.path, self.stamp) if self.remote is None else self.remote


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads and checks the header of a safetensors file.

    Raises:
        CheckpointFileError: If the file is missing, truncated, or its header is not consistent with its size.
    """
    try:
        with regular_file(path) as file:
            header = read_header_text(file, CHECKPOINT_HEADER.nbytes)
    except FileNotFoundError:
        raise CheckpointFileError(
            f"{path} does not exist.", advice="Download the missing shard, or correct the index.", path=path
        ) from None
    except OSError as error:
        raise CheckpointFileError(
            f"{path} cannot be read: {error.strerror}.", advice="Check what it is, and its permissions.", path=path
        ) from error
    except HeaderProblem as problem:
        raise malformed(path, problem) from None
    return tensors_of(header, path)


def tensors_of(header: HeaderText, path: Path) -> dict[str, TensorInfo]:
    """Checks a header, wherever it was read.

    Args:
        header: The header.
        path: Where the file is, or will be.

    Raises:
        CheckpointFileError: If it is not valid, or not consistent with the file's size.
    """
    try:
        entries = parse_entries(header)
    except HeaderProblem as problem:
        if problem.needed is None:
            raise malformed(path, problem) from None
        needed = header.data_start + problem.needed
        raise CheckpointFileError(
            f"{path} is truncated: {problem.tensor!r} ends at byte {needed}, the file has {header.size}.",
            advice="Download the file again.",
            path=path,
            tensor=problem.tensor,
            expected=needed,
            got=header.size,
        ) from None
    return {entry.name: _info(path, entry, header) for entry in entries}


def _info(path: Path, entry: HeaderEntry, header: HeaderText) -> TensorInfo:
    return TensorInfo(
        name=entry.name,
        path=path,
        dtype=entry.dtype,
        shape=entry.shape,
        offset=header.data_start + entry.begin,
        nbytes=entry.end - entry.begin,
        stamp=header.stamp,
    )


def malformed(path: Path, problem: HeaderProblem) -> CheckpointFileError:
    """The error for a file whose header is not one."""
    return CheckpointFileError(
        f"{path} is not a valid safetensors file: {problem}.",
        advice="Download the file again.",
        path=path,
        tensor=problem.tensor,
    )
