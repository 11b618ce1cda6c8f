"""Bits for each expert's matrices within a budget, by what a profile says of the expert."""

from coterie.extraction.allocation.allocating import allocate
from coterie.extraction.allocation.allocation import (
    Allocated,
    Allocation,
    AllocationReport,
    Choice,
    ComponentChoices,
    MatrixLevels,
)

__all__ = ["Allocated", "Allocation", "AllocationReport", "Choice", "ComponentChoices", "MatrixLevels", "allocate"]
