"""Memory that open models of this process were promised and have not used yet.

A budget is for the whole process. What another model holds already is seen in the process's memory; what its arena,
context and activations may still come to hold is not, and must not be given away a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol
from weakref import WeakSet


class Promised(Protocol):
    """An open model, as far as memory is concerned."""

    def unused_nbytes(self) -> int:
        """Bytes that it may still come to hold, beyond what it holds now."""
        ...

    def spare_nbytes(self) -> int | None:
        """Bytes that may be taken for a while, as long as it does not compute; None if it has no budget."""
        ...

    def lends_for_inputs(self) -> AbstractContextManager[None]:
        """Inside, experts lend what its encoders take afterwards, so that more may be taken for a while."""
        ...


_OPEN: WeakSet[Promised] = WeakSet()


def promise(model: Promised) -> None:
    """Counts a model's memory from now on, until it is closed or collected."""
    _OPEN.add(model)


def release(model: Promised) -> None:
    """Counts it no longer. Harmless when repeated."""
    _OPEN.discard(model)


def promised_nbytes() -> int:
    """Bytes that the open models may still come to hold, beyond what they hold now."""
    return sum(model.unused_nbytes() for model in list(_OPEN))


def spare_nbytes() -> int | None:
    """Bytes that may be taken while inputs are made, and given back before a model computes; None without a budget."""
    spare = [nbytes for model in list(_OPEN) if (nbytes := model.spare_nbytes()) is not None]
    return min(spare, default=None)


@contextmanager
def lent_for_inputs() -> Iterator[None]:
    """Inside, :func:`spare_nbytes` has what experts lend to encoders, too."""
    with ExitStack() as stack:
        for model in list(_OPEN):
            stack.enter_context(model.lends_for_inputs())
        yield
