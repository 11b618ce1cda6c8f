"""What is the same in all families: a bank has experts, an expert has fields, a field lies in parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Holding = Literal["stacked", "rows", "separate"]
"""How parameters hold a field: one [E, …]; one [E · n, …] of E blocks of n rows; or E, one per expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldPlace:
    """Where a field of all experts of a bank is.

    Attributes:
        names: Parameter names below the bank's module: one, or E of them.
        shape: Shape for one expert.
        dtype: Dtype of the parameter.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """How one module holds a bank of experts.

    Attributes:
        family: Name of the family, by which the way of computing is chosen.
        holding: How parameters hold a field.
        num_experts: E, the experts that have weights.
        fields: Field name → its place, in record order.
        identities: How many experts without weights follow: ids from E on, which give back what they get.
        has_router: Whether the router is a child of the bank's module itself, not of the module around it.
        bank: Name of the bank where the class says it better than the path does, else None.
    """

    family: str
    holding: Holding
    num_experts: int
    fields: dict[str, FieldPlace]
    identities: int = 0
    has_router: bool = False
    bank: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Experts classes that hold their experts alike.

    Attributes:
        name: Name of the family.
        class_names: transformers classes; matched exactly, never by substring.
        arrange: Describes a module of such a class, on any device; None if it has no experts.
    """

    name: str
    class_names: frozenset[str]
    arrange: Callable[[nn.Module], Arrangement | None]


def stacked_fields(parameters: dict[str, torch.Tensor]) -> dict[str, FieldPlace]:
    """Places of parameters [E, …], under their own names."""
    return {
        name: FieldPlace(names=(name,), shape=tuple(parameter.shape[1:]), dtype=parameter.dtype)
        for name, parameter in parameters.items()
    }
