"""Dense tensors that are not read yet, as transformers' loader takes them; quantised ones as what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from coterie.checkpoint.headers import TensorInfo
from coterie.checkpoint.packed import UnpackedTensor
from coterie.checkpoint.reading import LazyTensor, read_tensor
from coterie.errors import CheckpointFileError
from coterie.hf.quantisation import Quantisation
from coterie.hf.quantised import fold_names
from coterie.quant import dequantise_fp8
from coterie.quant.dtypes import SAFETENSORS_DTYPES


@dataclass(frozen=True, slots=True)
class DequantisedTensor:
    """An FP8 weight that is read and dequantised when it is indexed with ``[...]``.

    Attributes:
        weight: The FP8 weights.
        scales: Their scales.
        result: The dtype that the model computes in.
        block: Rows and columns of a block that the configuration states.
    """

    weight: TensorInfo
    scales: TensorInfo
    result: torch.dtype
    block: tuple[int, int] | None

    def __getitem__(self, index: object) -> torch.Tensor:
        """Reads and dequantises the whole tensor and indexes it.

        Raises:
            CheckpointFileError: If its scales do not fit.
        """
        weight = read_tensor(self.weight)
        try:
            tensor = dequantise_fp8(weight, read_tensor(self.scales), self.result, self.block)
        except ValueError as error:
            raise CheckpointFileError(
                f"{self.weight.name!r} cannot be dequantised: {error}.",
                advice="Compare weight_block_size in config.json with the shapes of the scales.",
                path=self.weight.path,
                tensor=self.weight.name,
                expected=self.weight.shape,
                got=self.scales.shape,
            ) from error
        return tensor if index is Ellipsis else tensor[index]  # type: ignore[index]

    def get_dtype(self) -> str:
        """The name that safetensors gives the result's dtype."""
        return SAFETENSORS_DTYPES[self.result]

    def get_shape(self) -> list[int]:
        """Shape as a list."""
        return list(self.weight.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory once it is read."""
        return prod(self.weight.shape) * self.result.itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape."""
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the result."""
        return self.result


UnreadTensor = LazyTensor | DequantisedTensor | UnpackedTensor
"""What a state dict for transformers' loader holds."""


def unread_tensors(
    tensors: Mapping[str, TensorInfo], quantisation: Quantisation | None, dtype: torch.dtype
) -> dict[str, UnreadTensor]:
    """A state dict of dense tensors under the names that they would have if nothing were quantised.

    Args:
        tensors: Dense tensors by name, scales included.
        quantisation: What the configuration says.
        dtype: That the model computes in.

    Raises:
        TensorMissingError: If quantised weights have no scales.
    """
    folded = fold_names(quantisation, {name: info.dtype for name, info in tensors.items()})
    found: dict[str, UnreadTensor] = {name: LazyTensor(tensors[name]) for name in folded.names if name in tensors}
    for name, (weight, scales) in folded.parts.items():
        found[name] = DequantisedTensor(tensors[weight], tensors[scales], dtype, folded.block)
    return found
