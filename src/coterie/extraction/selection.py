"""Which experts of which banks are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coterie.errors import UsageError
from coterie.spec import BankKey, parse_ranges

Numbers = str | Iterable[int] | None
"""A selection of numbers: text such as ``"0-7,12"``, the numbers themselves, or None for all."""

Experts = Numbers | Mapping[int, Numbers]
"""Experts for every layer, or by layer: a mapping, or text such as ``"3-5:0-18;6:0,1"``."""

NO_EXPERTS = "none"
"""A selection for a store of a model's depth alone."""

_DEPTH = (
    "The depth of a model is never cut: every layer keeps its dense part, and layers outside the selection keep all "
    "their experts."
)


def select_experts(
    banks: Mapping[BankKey, int], experts: Experts = None, layers: Numbers = None
) -> dict[BankKey, tuple[int, ...]]:
    """The wanted experts of every bank, ascending.

    The selection of experts applies to the selected layers (all, if none are named); the other layers keep all their
    experts. In a bank with fewer experts than another, those that it has are taken.

    Args:
        banks: Number of experts of each bank.
        experts: Ids to take, in every layer or by layer; layers that are not named keep all their experts.
        layers: Layers to which ``experts`` applies.

    Raises:
        UsageError: If a number is out of range, layers are named without experts, or a layer is named twice.
    """
    most = max(banks.values())
    depth = 1 + max(key.layer for key in banks)
    if isinstance(experts, str) and experts.strip() == NO_EXPERTS:
        if layers is not None:
            raise UsageError("No experts were selected, of any layer.", advice="Leave --layers out.")
        return dict.fromkeys(banks, ())
    by_layer = _by_layer(experts, most, depth)
    if by_layer is not None:
        if layers is not None:
            raise UsageError(
                "The experts were selected by layer already.", advice="Leave --layers out: layers not named keep all."
            )
        _require_experts(banks, by_layer)
        return {key: _within(by_layer.get(key.layer), count) for key, count in banks.items()}
    wanted = _numbers(experts, "experts", most)
    limited_to = _numbers(layers, "layers", depth)
    if limited_to is not None and wanted is None:
        raise UsageError(
            f"Layers were selected without experts. {_DEPTH}",
            advice="Name the experts, such as --experts 0-7; --layers says in which layers that selection applies.",
        )
    if limited_to is not None:
        _require_experts(banks, limited_to)
    return {
        key: _within(wanted if limited_to is None or key.layer in limited_to else None, count)
        for key, count in banks.items()
    }


def _within(wanted: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    return tuple(range(count)) if wanted is None else tuple(e for e in wanted if e < count)


def _require_experts(banks: Mapping[BankKey, int], layers: Iterable[int]) -> None:
    with_experts = sorted({key.layer for key in banks})
    if not set(layers) & set(with_experts):
        raise UsageError(
            f"None of the selected layers has experts; the first layer that has is {with_experts[0]}.",
            layers=with_experts,
        )


def _by_layer(experts: object, most: int, depth: int) -> dict[int, tuple[int, ...] | None] | None:
    """The selection by layer, or None if it is not of that kind."""
    if isinstance(experts, Mapping):
        pairs: list[tuple[tuple[int, ...], Numbers]] = [((layer,), ids) for layer, ids in experts.items()]
    elif isinstance(experts, str) and ":" in experts:
        pairs = []
        for part in filter(str.strip, experts.split(";")):
            named, colon, numbers = part.partition(":")
            if not colon:
                raise UsageError(
                    f"{part.strip()!r} does not say in which layers.", advice="Write it like '3-5:0-18;6:0,1'."
                )
            pairs.append((parse_ranges(named, what="layers", limit=depth), numbers))
    else:
        return None
    chosen: dict[int, tuple[int, ...] | None] = {}
    for layers, ids in pairs:
        for layer in _numbers(layers, "layers", depth) or ():
            if layer in chosen:
                raise UsageError(f"Layer {layer} is named twice.", layer=layer)
            chosen[layer] = _numbers(ids, "experts", most)
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
