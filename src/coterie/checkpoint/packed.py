"""The packed weights of a quantised checkpoint: read, unpacked, and put into the scheme that takes them as they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from coterie.checkpoint.headers import TensorInfo
from coterie.checkpoint.reading import read_tensor
from coterie.errors import CheckpointFileError, UnsupportedError, UsageError
from coterie.hf.quantised import PackedNames
from coterie.quant.dtypes import SAFETENSORS_DTYPES
from coterie.quant.packed import FloatBlocks, Lattice, Rounded, some_rows, transcode, unpack
from coterie.quant.scheme import Parts


class RoundedSoFar:
    """What was rounded of all packed weights of a checkpoint that were read into schemes, by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rounded = Rounded()

    def add(self, rounded: Rounded) -> None:
        """Counts what was rounded of one weight."""
        with self._lock:
            self._rounded += rounded

    @property
    def total(self) -> Rounded:
        """All together."""
        return self._rounded


_VALUES = 2**22
"""Weights that are unpacked at once."""
_ROWS = 32
"""Rows are unpacked in multiples of so many, which fill whole words also where words go across rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """One weight.

    Attributes:
        name: The name that it would have if it were not quantised.
        names: Its tensors.
        tensors: All tensors of the checkpoint by name.
        rounded: Counts what is rounded.
    """

    name: str
    names: PackedNames
    tensors: Mapping[str, TensorInfo]
    rounded: RoundedSoFar

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.names.packing.shape(self.info("codes").shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint, as far as its values depend on them."""
        return sum(self.info(role).nbytes for role in self.names.names)

    def info(self, role: str) -> TensorInfo:
        """Where one of its tensors lies. Looked up anew: files may have come since."""
        info = self.tensors[self.names.names[role]]
        if self.names.index is None:
            return info
        nbytes = info.nbytes // info.shape[0]
        offset = info.offset + self.names.index * nbytes
        return replace(info, shape=info.shape[1:], offset=offset, nbytes=nbytes)

    @property
    def scheme(self) -> str:
        """The scheme that takes it as it is.

        Raises:
            UnsupportedError: If there is none.
        """
        packing, dtype = self.names.packing, self.info("scales").dtype
        try:
            return packing.scheme(dtype)
        except UsageError as error:
            raise UnsupportedError(
                f"{self.name!r} is quantised to {packing.bits} bits in groups of {packing.group or 'a row'} with "
                f"scales in {dtype}, and no scheme takes that as it is: {error.message}",
                advice="Use the model's original bf16 checkpoint, or another quantised release of it.",
                tensor=self.name,
            ) from error

    def weights(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [N, K], dequantised: computed in float32 and rounded once.

        Raises:
            CheckpointFileError: If it cannot be read or unpacked.
        """
        result = torch.empty(self.shape, dtype=dtype)
        first = 0
        for rows in self.rows(dtype):
            result[first : first + len(rows)] = rows
            first += len(rows)
        return result

    def rows(self, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The same, some rows at a time."""
        for part in self._unpacked():
            yield part.weights(dtype)

    def parts(self) -> Iterator[Parts]:
        """Codes and scales in :attr:`scheme`, some rows at a time.

        Raises:
            CheckpointFileError: If it cannot be read or unpacked.
            UnsupportedError: If no scheme takes it.
        """
        scheme = self.scheme
        for part in self._unpacked():
            parts, rounded = transcode(part, scheme)
            self.rounded.add(rounded)
            yield parts

    def _unpacked(self) -> Iterator[Lattice | FloatBlocks]:
        """The weight, some rows at a time."""
        read = {role: read_tensor(self.info(role)) for role in self.names.names}
        rows, columns = self.shape
        step = max(_ROWS, _VALUES // max(1, columns) // _ROWS * _ROWS)
        for first in range(0, rows, step):
            yield self._unpack(some_rows(self.names.packing, read, slice(first, min(first + step, rows))))

    def _unpack(self, read: Mapping[str, torch.Tensor]) -> Lattice | FloatBlocks:
        try:
            return unpack(self.names.packing, read)
        except ValueError as error:
            raise CheckpointFileError(
                f"{self.name!r} cannot be unpacked: {error}.",
                advice="Use another release of the model, or its original bf16 checkpoint.",
                path=self.info("codes").path,
                tensor=self.names.names["codes"],
            ) from error


@dataclass(frozen=True, slots=True)
class UnpackedTensor:
    """A packed weight that is read and dequantised when it is indexed with ``[...]``.

    Attributes:
        weight: The weight.
        dtype: The dtype that the model computes in.
    """

    weight: PackedWeight
    dtype: torch.dtype

    def __getitem__(self, index: object) -> torch.Tensor:
        """Reads and dequantises the whole weight and indexes it."""
        tensor = self.weight.weights(self.dtype)
        return tensor if index is Ellipsis else tensor[index]  # type: ignore[index]

    def get_dtype(self) -> str:
        """The name that safetensors gives the result's dtype."""
        return SAFETENSORS_DTYPES[self.dtype]

    def get_shape(self) -> list[int]:
        """Shape as a list."""
        return list(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes in memory once it is read."""
        rows, columns = self.weight.shape
        return rows * columns * self.dtype.itemsize
