"""Reads tensors of safetensors files into memory of our own, and leaves nothing in the page cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from coterie.checkpoint.headers import TensorInfo
from coterie.errors import CheckpointFileError
from coterie.quant.dtypes import TORCH_DTYPES
from coterie.records import read_range


def read_tensor(info: TensorInfo, index: int | None = None) -> torch.Tensor:
    """Reads a tensor into fresh memory aligned as torch aligns it.

    A view of a memory map would be at whatever alignment the file has, which changes the rounding of fp32 GEMMs, and
    its pages could be dropped and read again at any time.

    Args:
        info: Which tensor.
        index: If given, only ``[index : index + 1]`` of the first dimension.

    Raises:
        CheckpointFileError: If the file cannot be read, is shorter than its header says, or has changed since.
    """
    if info.keeper is not None and index is None:
        kept = info.keeper.take(info)
        if kept is not None:
            return kept
    shape, offset, nbytes = info.shape, info.offset, info.nbytes
    if index is not None:
        nbytes //= shape[0]
        offset += index * nbytes
        shape = (1, *shape[1:])
    dtype = TORCH_DTYPES[info.dtype]
    raw = torch.empty(nbytes, dtype=torch.uint8)
    try:
        got = read_range(info.source, offset, raw.numpy().data)
    except OSError as error:
        raise CheckpointFileError(
            f"{info.path} cannot be read: {error.strerror}.",
            advice="Check that it is still there, its permissions and the disk.",
            path=info.path,
            tensor=info.name,
        ) from error
    if got < nbytes:
        raise CheckpointFileError(
            f"{info.path} is truncated: {info.name!r} ends at byte {offset + nbytes}.",
            advice="Download the file again.",
            path=info.path,
            tensor=info.name,
            expected=nbytes,
            got=got,
        )
    return raw.view(dtype).view(shape) if nbytes else torch.empty(shape, dtype=dtype)


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is read when it is indexed with ``[...]``, as transformers' loader does with each one.

    It stands in for the slices of the safetensors library, so that dense weights go straight from the file into
    aligned memory of the process, once.
    """

    info: TensorInfo

    def __getitem__(self, index: object) -> torch.Tensor:
        """Reads the whole tensor and indexes it."""
        tensor = read_tensor(self.info)
        return tensor if index is Ellipsis else tensor[index]  # type: ignore[index]

    def get_dtype(self) -> str:
        """The name that safetensors gives the dtype."""
        return self.info.dtype

    def get_shape(self) -> list[int]:
        """Shape as a list."""
        return list(self.info.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory once it is read."""
        return self.info.nbytes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape."""
        return self.info.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in torch."""
        return TORCH_DTYPES[self.info.dtype]
