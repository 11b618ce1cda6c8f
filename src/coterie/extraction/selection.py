"""Which experts of which banks are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coterie.errors import UsageError
from coterie.spec import BankKey, parse_ranges

Numbers = str | Iterable[int] | None
"""A selection of numbers: text such as ``"0-7,12"``, the numbers themselves, or None for all."""

_DEPTH = (
    "The depth of a model is never cut: every layer keeps its dense part, and layers outside the selection keep all "
    "their experts."
)


def select_experts(
    banks: Mapping[BankKey, int], experts: Numbers = None, layers: Numbers = None
) -> dict[BankKey, tuple[int, ...]]:
    """The wanted experts of every bank, ascending.

    The selection of experts applies to the selected layers (all, if none are named); the other layers keep all their
    experts. In a bank with fewer experts than another, those that it has are taken.

    Args:
        banks: Number of experts of each bank.
        experts: Ids to take.
        layers: Layers to which ``experts`` applies.

    Raises:
        UsageError: If a number is out of range, or layers are named without experts.
    """
    most = max(banks.values())
    depth = 1 + max(key.layer for key in banks)
    wanted = _numbers(experts, "experts", most)
    limited_to = _numbers(layers, "layers", depth)
    if limited_to is not None and wanted is None:
        raise UsageError(
            f"Layers were selected without experts. {_DEPTH}",
            advice="Name the experts, such as --experts 0-7; --layers says in which layers that selection applies.",
        )
    if limited_to is not None and not any(key.layer in limited_to for key in banks):
        with_experts = sorted({key.layer for key in banks})
        raise UsageError(
            f"None of the selected layers has experts; the first layer that has is {with_experts[0]}.",
            layers=with_experts,
        )
    chosen: dict[BankKey, tuple[int, ...]] = {}
    for key, count in banks.items():
        applies = wanted is not None and (limited_to is None or key.layer in limited_to)
        chosen[key] = tuple(e for e in wanted or () if e < count) if applies else tuple(range(count))
    return chosen


def _numbers(selection: Numbers, what: str, limit: int) -> tuple[int, ...] | None:
    if selection is None:
        return None
    if isinstance(selection, str):
        return parse_ranges(selection, what=what, limit=limit)
    numbers = sorted(set(selection))
    if not numbers:
        raise UsageError(f"The selection of {what} is empty.", advice="Name at least one, or leave it out for all.")
    for number in (numbers[0], numbers[-1]):
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < limit:
            raise UsageError(f"{what} {number} does not exist: the model has {what} 0 to {limit - 1}.", limit=limit)
    return tuple(numbers)
