"""What may leave out some of the experts that a router chose, though they are there."""

from __future__ import annotations

from typing import Protocol

from coterie.routing import Routed
from coterie.spec import BankKey


class ExpertLimit(Protocol):
    """Decides how many of its experts a token gets. Called by several threads at a time."""

    def __call__(self, bank: BankKey, routed: Routed, none: int) -> Routed:
        """Leaves choices out.

        Args:
            bank: Whose experts.
            routed: After the policy for absent experts.
            none: The id of what is left out.

        Returns:
            The rest; the same tensors if nothing is left out.
        """
        ...

    def most(self, component: str) -> int | None:
        """The most experts that a token of this thread's forward pass of a component gets; None if all of them."""
        ...
