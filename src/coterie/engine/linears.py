"""The weights of linear layers that a store has in a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from coterie.checkpoint import TensorInfo, read_tensor
from coterie.integration import QuantisedLinears
from coterie.quant import Scheme, linear_names, lossy_scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLinears:
    """Weights in a scheme, unread.

    Attributes:
        scheme: The scheme.
        parts: Checkpoint name of a weight → its codes and scales.
        component: The component that the model is of a larger checkpoint, or None.
    """

    scheme: Scheme
    parts: Mapping[str, tuple[TensorInfo, TensorInfo]]
    component: str | None

    @property
    def nbytes(self) -> int:
        """Bytes in memory, and in the file."""
        return sum(info.nbytes for pair in self.parts.values() for info in pair)

    @property
    def stored_names(self) -> frozenset[str]:
        """Names of their tensors in the store."""
        return frozenset(info.name for pair in self.parts.values() for info in pair)

    def layers(self) -> QuantisedLinears:
        """The layers that take them, for one model."""
        weights = {
            name: (partial(_read, *pair), tuple((info.dtype, info.shape) for info in pair))
            for name, pair in self.parts.items()
        }
        return QuantisedLinears(weights, self.scheme, self.component)


def stored_linears(tensors: Mapping[str, TensorInfo], scheme: str, component: str | None) -> StoredLinears | None:
    """Finds the weights that are in a scheme.

    Args:
        tensors: Dense tensors of a store by name.
        scheme: That of the manifest.
        component: The component that the model is of a larger checkpoint, or None.

    Returns:
        They, or None if there are none.

    Raises:
        UsageError: If there is no such scheme.
    """
    lossy = lossy_scheme(scheme)
    names = {} if lossy is None else linear_names(tensors, lossy)
    if lossy is None or not names:
        return None
    parts = {name: (tensors[codes], tensors[scales]) for name, (codes, scales) in names.items()}
    return StoredLinears(scheme=lossy, parts=parts, component=component)


def _read(codes: TensorInfo, scales: TensorInfo) -> tuple[torch.Tensor, torch.Tensor]:
    return read_tensor(codes), read_tensor(scales)
