"""What one forward pass uses of one bank of experts."""

from __future__ import annotations

from math import inf

NOBODY = 0
"""A number that no expert has. Every visit has it as its first member."""


class Visit:
    """The present visit of a bank.

    Attributes:
        bank: Number of the bank.
        members: Numbers of the experts that it has used so far, after :data:`NOBODY`.
        previous: The members of the visit before.
        known: How many of the members have been learned from; 1 for a new visit, as nobody is known.
        count: How many visits the bank has had.
        left_at: The policy's count of moves before another bank's turn came.
    """

    __slots__ = ("bank", "count", "known", "left_at", "members", "previous")

    def __init__(self, bank: int) -> None:
        self.bank = bank
        self.members: dict[int, None] = {NOBODY: None}
        self.previous = self.members
        self.known = 1
        self.count = 0
        self.left_at = -inf

    def begin(self) -> None:
        """The members so far become what the next ones follow. They must have been learned from."""
        self.count += 1
        self.previous = self.members
        self.members = {NOBODY: None}
        self.known = 1

    def is_unlearned(self, number: int) -> bool:
        """Whether an expert is a member and nothing has been learned from this visit yet."""
        return self.known == 1 and number in self.members

    def continues(self, other: Visit) -> bool:
        """Whether this is a visit of the next bank, and both are of one shape, so that arrays can hold them."""
        same = len(self.members) == len(other.members) and len(self.previous) == len(other.previous)
        return same and self.bank == other.bank + 1
