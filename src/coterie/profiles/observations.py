"""What routers chose for one input, not counted yet: it can be sent elsewhere, and be counted later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from coterie.profiles.facts import BankShape, Group, check_group
from coterie.spec import BankKey


class Counting(Protocol):
    """Where rows of routers go: into counters, or first into :class:`Observations`."""

    @property
    def banks(self) -> Sequence[BankShape]:
        """The banks whose rows are taken."""
        ...

    def group(self, modality: str, domain: str, phase: str) -> int:
        """The number of a group of tokens, for :meth:`add`; errors as of :meth:`Accumulator.group`."""
        ...

    def add(
        self,
        bank: BankKey,
        expert_ids: npt.NDArray[np.uint16],
        weights: npt.NDArray[np.float32],
        contributions: npt.NDArray[np.float32] | None,
        groups: npt.NDArray[np.uint8] | int,
        token_ids: npt.NDArray[np.integer] | int | None = None,
    ) -> None:
        """Takes the rows of T tokens that passed a bank's router; arguments as of :meth:`Accumulator.add`."""
        ...

    def boundary(self) -> None:
        """Says that all banks have seen the same tokens."""
        ...


class _Rows(NamedTuple):
    """One call of :meth:`Observations.add`."""

    bank: BankKey
    expert_ids: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.float32]
    contributions: npt.NDArray[np.float32] | None
    groups: npt.NDArray[np.uint8] | int
    token_ids: npt.NDArray[np.integer] | int | None


class Observations:
    """Rows of routers, in order, as they were told. They can be pickled.

    Sums of numbers depend on their order. So what several processes observe is not added up there: the rows themselves
    are handed on, and counted one after the other, as one process would. They take 10 × K bytes per token and bank.

    Args:
        banks: Whose rows.

    Attributes:
        banks: As given.
        tokens: Tokens of each group, padding left out; set by whoever observes.
    """

    def __init__(self, banks: Sequence[BankShape]) -> None:
        self.banks = tuple(banks)
        self.tokens: Mapping[Group, int] = {}
        self._groups: list[Group] = []
        self._rows: list[_Rows] = []

    def group(self, modality: str, domain: str, phase: str) -> int:
        """As of :class:`Counting`; the number holds here alone."""
        group = check_group(modality, domain, phase)
        if group not in self._groups:
            self._groups.append(group)
        return self._groups.index(group)

    def add(
        self,
        bank: BankKey,
        expert_ids: npt.NDArray[np.uint16],
        weights: npt.NDArray[np.float32],
        contributions: npt.NDArray[np.float32] | None,
        groups: npt.NDArray[np.uint8] | int,
        token_ids: npt.NDArray[np.integer] | int | None = None,
    ) -> None:
        """As of :class:`Counting`. Arrays are copied."""
        self._rows.append(
            _Rows(
                bank,
                expert_ids.copy(),
                weights.copy(),
                None if contributions is None else contributions.copy(),
                groups if isinstance(groups, int) else groups.copy(),
                token_ids.astype(np.int32) if isinstance(token_ids, np.ndarray) else token_ids,
            )
        )

    def boundary(self) -> None:
        """Nothing ends here."""

    def count_into(self, counting: Counting) -> None:
        """Tells the same to another: its counters are as if it had been told in the first place."""
        numbers = np.array([counting.group(*group) for group in self._groups], np.uint8)
        for rows in self._rows:
            groups = int(numbers[rows.groups]) if isinstance(rows.groups, int) else numbers[rows.groups]
            counting.add(*rows._replace(groups=groups))
