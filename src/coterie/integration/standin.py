"""What stands in for a stacked expert parameter: indexing it fetches that expert.

Used where a class's own eager forward is the arithmetic. That forward walks the experts in ascending id and indexes
each parameter with the id; a cursor over an ordered lease follows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import nn

from coterie.cache import Tensors
from coterie.errors import LoadError, UnsupportedError
from coterie.hf.banks import ExpertBank
from coterie.passes.current import current
from coterie.spec import ExpertKey


class _Walk:
    """How far a forward pass is."""

    experts: Iterator[tuple[ExpertKey, Tensors]] | None = None
    expert = -1
    tensors: Tensors = ()


class ExpertCursor:
    """The expert of a bank that a forward pass is computing with, one at a time, in ascending order."""

    @contextmanager
    def over(self, experts: Iterator[tuple[ExpertKey, Tensors]]) -> Iterator[None]:
        """For one computation with experts that arrive in ascending id."""
        walk = current().state(self, _Walk)
        walk.experts, walk.expert, walk.tensors = experts, -1, ()
        try:
            yield
        finally:
            # The tensors are valid no longer.
            walk.experts, walk.expert, walk.tensors = None, -1, ()

    @property
    def active(self) -> bool:
        """Whether experts are there to be computed with."""
        return current().state(self, _Walk).experts is not None

    def seek(self, expert: int) -> Tensors:
        """The tensors of an expert, which must not lie before the current one."""
        walk = current().state(self, _Walk)
        if walk.experts is None:
            raise UnsupportedError(
                "An expert's weights were asked for outside the model's forward pass.",
                advice="The experts of a streamed model are only in memory while they are needed.",
            )
        while walk.expert != expert:
            item = next(walk.experts, None)
            if item is None:
                raise LoadError(
                    f"The experts class asked for expert {expert} out of order.",
                    advice="Its forward pass is not supported; please report the model's class.",
                    expert=expert,
                )
            walk.expert, walk.tensors = item[0].expert, item[1]
        return walk.tensors


class StackedStandIn:
    """Takes the place of a parameter [E, …], or [E · n, …] of E blocks of n rows, of an experts module.

    Args:
        cursor: Where the current expert is.
        position: Which field of the record this is.
        shape: Shape of the whole parameter as [E, …].
        dtype: Dtype that the model computes in.
        name: Full name, for messages.
    """

    # transformers initialises what lacks this mark.
    _is_hf_initialized = True

    def __init__(
        self,
        cursor: ExpertCursor,
        position: int,
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        name: str,
    ) -> None:
        self._cursor = cursor
        self._position = position
        self._name = name
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.device = torch.device("cpu")

    def __getitem__(self, index: object) -> torch.Tensor:
        """The parameter of one expert, valid until the next expert is asked for."""
        if isinstance(index, torch.Tensor) and index.numel() == 1:
            index = int(index.item())
        if not isinstance(index, int):
            self._refuse(f"indexed with {type(index).__name__}")
        return self._cursor.seek(index)[self._position]

    def view(self, *shape: int | tuple[int, ...]) -> StackedStandIn:
        """The same, if the view only separates the experts of stacked rows: [E, n, …]."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if sizes[0] not in (-1, self.shape[0]) or tuple(sizes[1:]) != tuple(self.shape[1:]):
            self._refuse(f"viewed as {sizes}")
        return self

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f"asked for .{name}")

    def _refuse(self, how: str) -> NoReturn:
        raise UnsupportedError(
            f"{self._name} was {how}, but its experts are not all in memory.",
            advice="Only a forward pass can use the experts of a streamed model.",
            parameter=self._name,
        )


def stand_in(module: nn.Module, bank: ExpertBank, cursor: ExpertCursor) -> None:
    """Takes the stacked parameters of a bank out of its module and puts stand-ins in their place."""
    for position, (field, (target,)) in enumerate(bank.targets.items()):
        owner_path, _, name = target.removeprefix(f"{bank.path}.").rpartition(".")
        owner = module.get_submodule(owner_path)
        del owner._parameters[name]
        owner.__dict__[name] = stand_in_for(bank, field, position, cursor)
        # transformers initialises what lacks this mark.
        owner.__dict__["_is_hf_initialized"] = True
    module.__dict__["_is_hf_initialized"] = True


def stand_in_for(bank: ExpertBank, field: str, position: int, cursor: ExpertCursor) -> StackedStandIn:
    """What stands in for one field of all experts of a bank."""
    return StackedStandIn(
        cursor,
        position,
        shape=(bank.num_experts, *bank.parameters[field]),
        dtype=bank.dtypes[field],
        name=bank.targets[field][0],
    )
