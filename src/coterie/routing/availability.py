"""Which experts of one bank can be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Availability:
    """The experts of one bank that are present, of E in all.

    Attributes:
        num_experts: E, the experts that the router knows.
        top_k: Experts per token that the router picks.
        available: bool [E] on the CPU, True where the expert is present. Never written to.
    """

    num_experts: int
    top_k: int
    available: Tensor

    def __post_init__(self) -> None:
        if self.available.dtype != torch.bool or tuple(self.available.shape) != (self.num_experts,):
            raise UsageError(
                f"The mask of available experts must be bool [{self.num_experts}], "
                f"not {self.available.dtype} {list(self.available.shape)}."
            )
        if not 1 <= self.top_k <= self.num_experts:
            raise UsageError(f"top_k is {self.top_k}, but the bank has {self.num_experts} experts.")

    @classmethod
    def of(cls, present: Iterable[int], *, num_experts: int, top_k: int) -> Availability:
        """Builds the description from the ids of the experts that are present.

        Raises:
            UsageError: If an id is not in ``range(num_experts)``.
        """
        available = torch.zeros(num_experts, dtype=torch.bool, device="cpu")
        for expert in present:
            if not 0 <= expert < num_experts:
                raise UsageError(f"Expert {expert} does not exist: the bank has experts 0 to {num_experts - 1}.")
            available[expert] = True
        return cls(num_experts=num_experts, top_k=top_k, available=available)

    @property
    def count(self) -> int:
        """Number of experts that are present."""
        return int(self.available.sum())

    @property
    def complete(self) -> bool:
        """True if no expert is absent."""
        return bool(self.available.all())

    @property
    def absent(self) -> tuple[int, ...]:
        """Ids of the absent experts, ascending."""
        return tuple((~self.available).nonzero().flatten().tolist())
