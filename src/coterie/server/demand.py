"""How much is asked of each expert: an observer that costs the model's thread next to nothing.

What it is told is put aside as it is. It is counted when somebody wants to know, in the thread of whoever does.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.spec import BankKey, Event, ExpertsSelected, Phase, StepStarted

_MOST_ASIDE = 1 << 20
"""Choices that are put aside before they are counted, whether or not somebody wants to know."""

_OF_AN_EVENT = 100
"""As many choices take as much memory as what else is kept of an event: so it is 2 MiB at most."""

Ids = npt.NDArray[np.uint16]


@dataclass(slots=True)
class BankDemand:
    """What was asked of one bank.

    Attributes:
        choices: [E] how many tokens chose each expert, absent ones included.
        steps: Decode steps.
        rows: Tokens in them: one for each of the sequences that were computed together.
        chosen: Choices in them.
        union: Distinct experts in them, added up over steps. So ``chosen / union`` tokens share an expert.
    """

    choices: npt.NDArray[np.int64]
    steps: int = 0
    rows: int = 0
    chosen: int = 0
    union: int = 0

    def copy(self) -> BankDemand:
        """What it is now."""
        return BankDemand(self.choices.copy(), self.steps, self.rows, self.chosen, self.union)

    def add_step(self, ids: Ids) -> None:
        """Counts a decode step; ids [T, K] that are no expert's are left out."""
        experts = len(self.choices)
        chosen = ids[ids < experts]
        self.steps += 1
        self.rows += len(ids)
        self.chosen += len(chosen)
        # A token chooses an expert once.
        self.union += len(chosen) if len(ids) == 1 else len(np.unique(chosen))


class Demand:
    """Counts what routers choose.

    Args:
        num_experts: Bank → E.
    """

    def __init__(self, num_experts: Mapping[BankKey, int]) -> None:
        self._banks = {key: BankDemand(np.zeros(count, np.int64)) for key, count in sorted(num_experts.items())}
        self._phases: dict[str, Phase] = {}
        self._aside: list[tuple[BankKey, Ids, bool]] = []
        self._size = 0
        self._telling = threading.Lock()
        self._counting = threading.Lock()

    def on_event(self, event: Event) -> None:
        """Puts aside what routers choose."""
        if isinstance(event, ExpertsSelected):
            ids = event.expert_ids
            with self._telling:
                self._aside.append((event.bank, ids, self._phases.get(event.bank.component) == "decode"))
                self._size += ids.size + _OF_AN_EVENT
            if self._size > _MOST_ASIDE:
                self._count()
        elif isinstance(event, StepStarted):
            self._phases[event.component] = event.phase

    def banks(self) -> dict[BankKey, BankDemand]:
        """Bank → what was asked of it so far."""
        self._count()
        with self._counting:
            return {key: bank.copy() for key, bank in self._banks.items()}

    def _count(self) -> None:
        with self._counting:
            with self._telling:
                aside, self._aside, self._size = self._aside, [], 0
            together: dict[BankKey, list[Ids]] = {}
            for key, ids, decode in aside:
                bank = self._banks.get(key)
                if bank is not None:
                    together.setdefault(key, []).append(ids.reshape(-1))
                    if decode:
                        bank.add_step(ids)
            for key, parts in together.items():
                choices = self._banks[key].choices
                choices += np.bincount(np.concatenate(parts), minlength=len(choices))[: len(choices)]
