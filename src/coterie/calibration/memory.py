"""How much of a budget second moments take, and how many experts are calibrated at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coterie.engine import ModelSource
from coterie.engine.promises import promised_nbytes
from coterie.errors import MemoryBudgetError
from coterie.extraction.quantising import matrix_names
from coterie.hf.banks import ExpertBank
from coterie.plan.budget import least_budget
from coterie.plan.machine import default_memory_budget, process_memory
from coterie.spec import format_bytes, parse_bytes

_FLOAT = 4
_PROCESS_NBYTES = 768 << 20
"""Of a process with torch and Ray in it."""
_MATRICES = 24
"""Matrices of a parameter's size, float32, that are there while its codes are chosen."""
_SQUARES = 10
"""Matrices of a Hessian's size, float32, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A budget divided.

    Attributes:
        model: What the model is opened with.
        hessians: For second moments of experts.
    """

    model: int
    hessians: int

    def experts_at_once(self, bank: ExpertBank, experts: int) -> int:
        """How many experts of a bank are calibrated at once."""
        return max(1, min(experts, self.hessians // hessians_nbytes(bank)))


def inputs_of(bank: ExpertBank) -> dict[str, tuple[int, int]]:
    """Parameter → rows and columns of each matrix: the columns are what it is multiplied with."""
    shapes = {name: bank.parameters[name] for name in matrix_names(bank)}
    transposed = "transposed" in bank.variant
    return {name: (shape[1], shape[0]) if transposed else (shape[0], shape[1]) for name, shape in shapes.items()}


def hessians_nbytes(bank: ExpertBank) -> int:
    """Second moments of one expert's inputs."""
    return sum(columns * columns * _FLOAT for _, columns in inputs_of(bank).values())


def choosing_nbytes(banks: Iterable[ExpertBank]) -> int:
    """What choosing the codes of a matrix takes, of the largest one."""
    return max(
        (_MATRICES * rows * columns + _SQUARES * columns * columns) * _FLOAT
        for bank in banks
        for rows, columns in inputs_of(bank).values()
    )


def solver_nbytes(banks: Iterable[ExpertBank]) -> int:
    """What a process takes that does nothing but choose codes, of one expert at a time, while the next one is sent."""
    every = list(banks)
    return _PROCESS_NBYTES + choosing_nbytes(every) + 2 * max(_problem_nbytes(bank) for bank in every)


def _problem_nbytes(bank: ExpertBank) -> int:
    weights = sum(rows * columns * _FLOAT for rows, columns in inputs_of(bank).values())
    return hessians_nbytes(bank) + weights


def divide_budget(source: ModelSource, banks: Iterable[ExpertBank], memory: str | int | None, context: int) -> Room:
    """Divides a budget between the running model and what is counted of it.

    Args:
        source: What is opened, not open yet.
        banks: Its banks.
        memory: The user's ceiling; default: what the machine allows.
        context: Tokens of a forward pass.

    Raises:
        MemoryBudgetError: If not even one expert at a time can be calibrated; says what would do.
    """
    budget = default_memory_budget() if memory is None else parse_bytes(memory, what="memory")
    every = list(banks)
    largest = max(hessians_nbytes(bank) for bank in every)
    all_of_a_layer = max(hessians_nbytes(bank) * bank.num_experts for bank in every)
    # The layer's means, a product that is added up, and what choosing codes takes.
    beside = largest + choosing_nbytes(every)
    footprint = source.footprint
    process = process_memory().total + promised_nbytes() + footprint.dense
    least = least_budget(footprint, context, process=process)
    spare = budget - least - beside
    if spare < largest:
        enough = least + beside + largest
        raise MemoryBudgetError(
            f"A memory budget of {format_bytes(budget)} is too small for calibration: the running model takes at least "
            f"{format_bytes(least)}, choosing the codes of one expert {format_bytes(beside + largest)}.",
            advice=f'memory="{-(-enough >> 20)}MiB" would do.',
            budget=budget,
            minimum=enough,
        )
    hessians = min(all_of_a_layer, max(largest, spare // 2))
    return Room(model=budget - beside - hessians, hessians=hessians)
