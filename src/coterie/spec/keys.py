"""Who an expert is: (component, layer, bank, expert)."""

from __future__ import annotations

from typing import NamedTuple


class BankKey(NamedTuple):
    """One bank of experts: a stack of E experts behind one router in one layer.

    ``component`` is ``thinker``, ``talker``, ``text``, ``encoder`` or ``decoder``; ``bank`` is almost always ``mlp``.
    """

    component: str
    layer: int
    bank: str

    def expert(self, expert: int) -> ExpertKey:
        """The key of one expert of this bank."""
        return ExpertKey(self.component, self.layer, self.bank, expert)

    def __str__(self) -> str:
        return f"{self.component}/{self.bank}-layer-{self.layer:03d}"


class ExpertKey(NamedTuple):
    """The identity of an expert, the same for every store, scheme and release of transformers."""

    component: str
    layer: int
    bank: str
    expert: int

    @property
    def bank_key(self) -> BankKey:
        """The bank that this expert belongs to."""
        return BankKey(self.component, self.layer, self.bank)

    def __str__(self) -> str:
        return f"{self.component}/{self.bank}-layer-{self.layer:03d}/{self.expert:05d}"
