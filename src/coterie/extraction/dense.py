"""The bytes of dense tensors, straight from the checkpoint's files in pieces, so that no tensor is ever in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from coterie.checkpoint import Checkpoint, TensorInfo
from coterie.errors import CheckpointFileError
from coterie.store import DenseTensor

_PIECE = 4 * 2**20
_AHEAD = 4 * _PIECE


def dense_tensors(checkpoint: Checkpoint) -> tuple[DenseTensor, ...]:
    """Everything of the checkpoint that is not an expert, under its names there; nothing is read yet."""
    return tuple(_tensor(checkpoint, name) for name in checkpoint.keymap.dense)


def _tensor(checkpoint: Checkpoint, name: str) -> DenseTensor:
    def chunks() -> Iterator[memoryview]:
        checkpoint.download([name])
        # Looked up now: where a tensor lies in its file is known only once the shard is here.
        return tensor_pieces(checkpoint.tensors[name])

    info = checkpoint.tensors[name]
    return DenseTensor(name=name, dtype=info.dtype, shape=info.shape, chunks=chunks)


def tensor_pieces(info: TensorInfo) -> Iterator[memoryview]:
    """The bytes of one tensor in order; a piece is valid until the next one is asked for.

    What was read leaves the page cache.

    Raises:
        CheckpointFileError: If the file cannot be read or is shorter than its header says.
    """
    buffer = memoryview(bytearray(min(_PIECE, info.nbytes)))
    end = info.offset + info.nbytes
    try:
        with info.path.open("rb", buffering=0) as file:
            position = file.seek(info.offset)
            while position < end:
                _advise(file.fileno(), position + len(buffer), min(_AHEAD, end - position), "WILLNEED")
                count = file.readinto(buffer[: min(len(buffer), end - position)])
                if not count:
                    raise CheckpointFileError(
                        f"{info.path} is truncated: {info.name!r} ends at byte {end}, the file at {position}.",
                        advice="Download the file again, then repeat the command: what is finished is kept.",
                        path=info.path,
                        tensor=info.name,
                        expected=end,
                        got=position,
                    )
                yield buffer[:count]
                _advise(file.fileno(), position, count, "DONTNEED")
                position += count
    except OSError as error:
        raise CheckpointFileError(
            f"{info.path} cannot be read: {error.strerror}.",
            advice="Check its permissions and the disk, then repeat the command: what is finished is kept.",
            path=info.path,
            tensor=info.name,
        ) from error


def _advise(descriptor: int, offset: int, nbytes: int, advice: str) -> None:
    """Tells the kernel which bytes come next and which are done with, where it listens."""
    if hasattr(os, "posix_fadvise") and nbytes > 0:
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, nbytes, getattr(os, f"POSIX_FADV_{advice}"))
