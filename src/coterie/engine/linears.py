"""The weights of linear layers that a store has in a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from coterie.checkpoint import TensorInfo, read_tensor
from coterie.integration import EncodedWeight, QuantisedLinears
from coterie.origins.stored_dense import StoredLinear, stored_linears
from coterie.spec.dense_schemes import DenseSchemes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLinears:
    """Weights in a scheme, unread.

    Attributes:
        weights: Checkpoint name of a weight → its scheme, codes and scales.
        component: The component that the model is of a larger checkpoint, or None.
    """

    weights: Mapping[str, StoredLinear]
    component: str | None

    @classmethod
    def of(
        cls, tensors: Mapping[str, TensorInfo], schemes: DenseSchemes, component: str | None
    ) -> StoredLinears | None:
        """Finds the weights that are in a scheme; None if there are none.

        Args:
            tensors: Dense tensors of a store by name.
            schemes: Those of the manifest.
            component: The component that the model is of a larger checkpoint, or None.

        Raises:
            UsageError: If there is no such scheme.
        """
        weights = stored_linears(tensors, schemes)
        return cls(weights=weights, component=component) if weights else None

    @property
    def nbytes(self) -> int:
        """Bytes in memory, and in the file."""
        return sum(weight.nbytes for weight in self.weights.values())

    @property
    def stored_names(self) -> frozenset[str]:
        """Names of their tensors in the store."""
        return frozenset(info.name for weight in self.weights.values() for info in weight.tensors)

    def layers(self) -> QuantisedLinears:
        """The layers that take them, for one model."""
        weights = {
            name: EncodedWeight(
                scheme=weight.scheme,
                facts=tuple((info.dtype, info.shape) for info in weight.tensors),
                read=partial(_read, *weight.tensors),
            )
            for name, weight in self.weights.items()
        }
        return QuantisedLinears(weights, self.component)


def _read(codes: TensorInfo, scales: TensorInfo) -> tuple[torch.Tensor, torch.Tensor]:
    return read_tensor(codes), read_tensor(scales)
