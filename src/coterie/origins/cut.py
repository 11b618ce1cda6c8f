"""A tensor of which only some entries are taken."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from coterie.checkpoint import TensorInfo, read_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Which entries of one dimension of a tensor are taken.

    Attributes:
        dimension: The dimension.
        kept: The entries, in their new order.
    """

    dimension: int
    kept: tuple[int, ...]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is taken, of a tensor of this one."""
        return (*shape[: self.dimension], len(self.kept), *shape[self.dimension + 1 :])

    def read(self, info: TensorInfo) -> bytes:
        """Reads what is taken of a tensor.

        Raises:
            CheckpointFileError: If the file cannot be read.
        """
        outer, entries = prod(info.shape[: self.dimension]), info.shape[self.dimension]
        data = read_tensor(info).contiguous().view(-1).view(torch.uint8).view(outer, entries, -1)
        return data[:, list(self.kept)].contiguous().numpy().tobytes()
