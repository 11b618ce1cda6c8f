"""Everything that is not an expert, as one safetensors file or several with an index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import xxhash

from coterie.errors import ExtractionError, UsageError
from coterie.spec import DTYPE_BYTES
from coterie.store import names
from coterie.store.disk import Disk, NewFile
from coterie.store.journal import FinishedFile, Journal
from coterie.store.safetensors_file import build_header
from coterie.store.strict_json import dump_json

DENSE_SHARD_LIMIT = 5 * 10**9
"""Bytes of tensors per shard, unless one tensor alone is larger."""

_METADATA = {"format": "pt"}  # transformers refuses to load a file that does not say so
_WRITE_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class DenseTensor:
    """A tensor that is to be written.

    Attributes:
        name: Its name in the checkpoint.
        dtype: safetensors' name of the dtype.
        shape: Its shape.
        chunks: Gives its bytes in order, in pieces of any size; called when the tensor's turn comes.
        alignment: Bytes to whose multiple it begins; those of an element where that is more. What has more than its
            elements need must have a multiple of it in bytes, so that what follows is aligned too.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[memoryview | bytes]]
    alignment: int = 1

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class DenseShard:
    """One dense file that is to be written."""

    file: str
    tensors: tuple[DenseTensor, ...]
    header: bytes
    nbytes: int


def plan_shards(
    tensors: Iterable[DenseTensor],
    limit: int = DENSE_SHARD_LIMIT,
    files: Callable[[int], tuple[str, ...]] = names.dense_files,
) -> tuple[DenseShard, ...]:
    """Distributes tensors over files: wide dtypes first, then by name, so that each starts aligned.

    Args:
        tensors: In any order.
        limit: Bytes of tensors per file.
        files: Names of so many files.

    Raises:
        UsageError: If there is no tensor, a name occurs twice or a dtype is not known.
    """
    given = list(tensors)
    for tensor in given:
        if tensor.dtype not in DTYPE_BYTES:
            raise UsageError.unknown(f"dtype of the tensor {tensor.name!r}", tensor.dtype, DTYPE_BYTES)
    ordered = sorted(given, key=lambda tensor: (-max(DTYPE_BYTES[tensor.dtype], tensor.alignment), tensor.name))
    if not ordered:
        raise UsageError("A store without dense tensors cannot be written.")
    if len({tensor.name for tensor in ordered}) != len(ordered):
        raise UsageError("Two dense tensors have the same name.")
    groups: list[list[DenseTensor]] = [[]]
    filled = 0
    for tensor in ordered:
        if groups[-1] and filled + tensor.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    shards: list[DenseShard] = []
    for file, group in zip(files(len(groups)), groups, strict=True):
        data, header = build_header(((one.name, one.dtype, one.shape) for one in group), metadata=_METADATA)
        shards.append(DenseShard(file=file, tensors=tuple(group), header=data, nbytes=header.nbytes))
    return tuple(shards)


def write_shards(disk: Disk, journal: Journal, shards: Sequence[DenseShard]) -> None:
    """Writes the shards that the journal does not know yet, then their index if there are several."""
    layouts = [str(xxhash.xxh3_128_hexdigest(shard.header)) for shard in shards]
    for shard, layout in zip(shards, layouts, strict=True):
        finished = journal.finished(shard.file)
        if finished is None or finished.layout != layout:
            checksum = write_shard(disk, shard)
            journal.append(FinishedFile(file=shard.file, nbytes=shard.nbytes, checksums=(checksum,), layout=layout))
    if len(shards) > 1:
        write_whole(disk, journal, names.DENSE_INDEX, shard_index(shards), layout="/".join(layouts))


def finished_shards(journal: Journal) -> list[FinishedFile] | None:
    """Finished dense shards in order and then their index if there are several; None if one is missing.

    The index's entry names the layouts of the shards that belong together: an interrupted attempt with another limit
    may have left shards of the same names.
    """
    single = journal.finished(names.dense_files(1)[0])
    if single is not None:
        return [single]
    index = journal.finished(names.DENSE_INDEX)
    if index is None:
        return None
    layouts = index.layout.split("/")
    shards: list[FinishedFile] = []
    for name, layout in zip(names.dense_files(len(layouts)), layouts, strict=True):
        shard = journal.finished(name)
        if shard is None or shard.layout != layout:
            return None
        shards.append(shard)
    return [*shards, index]


def write_whole(disk: Disk, journal: Journal, name: str, data: bytes, *, layout: str = "") -> None:
    """Writes a small file unless the journal has it with the same content."""
    checksum = str(xxhash.xxh3_128_hexdigest(data))
    entry = FinishedFile(file=name, nbytes=len(data), checksums=(checksum,), layout=layout)
    if journal.finished(name) != entry:
        disk.write(name, data)
        journal.append(entry)


def shard_index(shards: Sequence[DenseShard]) -> bytes:
    """The file that says which shard has which tensor."""
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    return dump_json({"metadata": {"total_size": total}, "weight_map": weight_map}) + b"\n"


class Digest(Protocol):
    """Adds up a checksum."""

    def update(self, data: memoryview | bytes, /) -> object:
        """Adds bytes."""
        ...

    def hexdigest(self) -> str:
        """The checksum so far."""
        ...


def write_shard(disk: Disk, shard: DenseShard, digest: Callable[[], Digest] = xxhash.xxh3_128) -> str:
    """Writes a shard, whole or not at all; returns its checksum.

    Raises:
        ExtractionError: If a tensor gives more or fewer bytes than its shape needs.
        DiskSpaceError: If the shard does not fit.
        StoreError: If it cannot be written.
    """
    with disk.begin(shard.file, shard.nbytes) as file:
        stream = _Stream(file, digest())
        stream.write(shard.header)
        for tensor in shard.tensors:
            got = 0
            for chunk in tensor.chunks():
                view = memoryview(chunk)
                got += view.nbytes
                if got <= tensor.nbytes:
                    stream.write(view)
            if got != tensor.nbytes:
                raise ExtractionError(
                    f"The tensor {tensor.name!r} gave {got} bytes; {tensor.dtype} {list(tensor.shape)} has "
                    f"{tensor.nbytes}.",
                    advice="The checkpoint is damaged or changed while it was read; check it and start again.",
                    tensor=tensor.name,
                    expected=tensor.nbytes,
                    got=got,
                )
        stream.flush()
        file.publish()
    return stream.checksum()


class _Stream:
    """Appends to a file in large pieces while hashing: thousands of norms of a few KiB must not be a write each."""

    def __init__(self, file: NewFile, digest: Digest) -> None:
        self._file = file
        self._hash = digest
        self._buffer = bytearray()
        self._position = 0

    def write(self, data: memoryview | bytes) -> None:
        view = memoryview(data)
        if view.nbytes == 0:
            return  # memoryview.cast refuses shapes with a zero
        view = view.cast("B")
        for begin in range(0, len(view), _WRITE_BYTES):
            piece = view[begin : begin + _WRITE_BYTES]
            if not self._buffer and len(piece) == _WRITE_BYTES:
                self._put(piece)
            else:
                self._buffer += piece
                if len(self._buffer) >= _WRITE_BYTES:
                    self.flush()

    def flush(self) -> None:
        if self._buffer:
            data = self._buffer
            self._buffer = bytearray()
            self._put(memoryview(data))

    def checksum(self) -> str:
        return str(self._hash.hexdigest())

    def _put(self, data: memoryview) -> None:
        self._hash.update(data)
        self._file.write(data, self._position)
        self._position += len(data)
