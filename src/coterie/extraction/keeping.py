"""How many experts of each layer stay, and which."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coterie.errors import UsageError
from coterie.hf.banks import ExpertBank
from coterie.hf.expert_counts import RouterGroups
from coterie.spec import BankKey

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    Scores = Mapping[BankKey, NDArray[float64]]

_FORM = "Write it like 24 (experts of each layer), 75%, or by component: thinker=75%,talker=100%."


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A number of experts, or a share of them.

    Attributes:
        number: The number; None for a share.
        share: The share, above 0 and at most 1; None for a number.
    """

    number: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Amount:
        """Reads ``24`` or ``75%``.

        Raises:
            UsageError: If it is neither.
        """
        stripped = text.strip()
        try:
            if stripped.endswith("%"):
                share = float(stripped.removesuffix("%")) / 100
                if 0 < share <= 1:
                    return cls(share=share)
            elif (number := int(stripped)) > 0:
                return cls(number=number)
        except ValueError:
            pass
        raise UsageError(f"{text!r} is not a number or share of experts to keep.", advice=_FORM, got=text)

    def of(self, experts: int) -> int:
        """How many of so many experts."""
        return self.number if self.number is not None else math.ceil(round((self.share or 1) * experts, 6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How many experts of each layer are to be kept.

    Attributes:
        every: In every component; None where components are named.
        named: Component → how many. Components that are not named keep all.
    """

    every: Amount | None = None
    named: Mapping[str, Amount] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: str | int) -> Keep:
        """Reads ``24``, ``75%`` or ``thinker=75%,talker=96``.

        Raises:
            UsageError: If it is none of these, or names a component twice.
        """
        text = str(given)
        if "=" not in text:
            return cls(every=Amount.parse(text))
        named: dict[str, Amount] = {}
        for clause in text.split(","):
            component, equals, amount = (part.strip() for part in clause.partition("="))
            if not equals or not component or component in named:
                raise UsageError(f"{text!r} does not say for each component once what is kept.", advice=_FORM, got=text)
            named[component] = Amount.parse(amount)
        return cls(named=named)

    def counts(self, banks: Mapping[BankKey, ExpertBank], groups: Mapping[str, RouterGroups]) -> dict[BankKey, int]:
        """How many experts each bank keeps.

        Args:
            banks: The model's banks.
            groups: Component → groups of its routers.

        Raises:
            UsageError: If a component is not one of the model, or its router could not work with so few.
        """
        components = sorted({key.component for key in banks})
        for component in self.named:
            if component not in components:
                raise UsageError.unknown("component", component, components)
        found: dict[BankKey, int] = {}
        for key, bank in banks.items():
            amount = self.every or self.named.get(key.component)
            found[key] = bank.num_experts if amount is None else _count(bank, amount, groups[key.component])
        if all(found[key] == bank.num_experts for key, bank in banks.items()):
            raise UsageError("All experts would be kept: nothing is to be pruned.", advice=_FORM)
        return found


def _count(bank: ExpertBank, amount: Amount, groups: RouterGroups) -> int:
    """How many of a bank, where the router works with them; shares are rounded up to whole groups."""
    experts, wanted = bank.num_experts, amount.of(bank.num_experts)
    if wanted > experts:
        raise UsageError(
            f"{wanted} experts are to be kept of {bank.key}, which has {experts}.", advice=_FORM, limit=experts
        )
    size = groups.count
    if size > 1 and experts % size == 0 and wanted % size:
        if amount.number is not None:
            raise UsageError(
                f"The router of {bank.key} divides its experts into {size} groups of one size: {wanted} do not divide.",
                advice=f"Keep a multiple of {size}, such as {math.ceil(wanted / size) * size}.",
                groups=size,
            )
        wanted = math.ceil(wanted / size) * size
    least = _least(bank, groups)
    if wanted < least:
        of_groups = f", of {groups.chosen} of {size} groups with at least {groups.least} experts" if size > 1 else ""
        raise UsageError(
            f"{wanted} experts of {bank.key} would be left, and its router chooses {bank.choices or 1} per token"
            f"{of_groups}.",
            advice=f"Keep at least {least}.",
            least=least,
        )
    return wanted


def _least(bank: ExpertBank, groups: RouterGroups) -> int:
    """The fewest experts with which the router works as it is."""
    chosen = min(bank.choices or 1, bank.num_experts)
    if groups.count == 1:
        return max(1, chosen - bank.identities)
    return groups.count * max(groups.least, math.ceil(chosen / groups.chosen))


def take_best(
    scores: Scores, counts: Mapping[BankKey, int], groups: Mapping[str, RouterGroups]
) -> dict[BankKey, tuple[int, ...]]:
    """The experts with the highest scores, ascending; of equals the lower number. In each group equally many."""
    kept = {}
    for key, count in counts.items():
        values = scores[key].tolist() if key in scores else None
        kept[key] = tuple(range(count)) if values is None else _best(values, count, groups[key.component].count)
    return kept


def draw_scores(banks: Mapping[BankKey, ExpertBank], seed: int) -> Scores:
    """Scores drawn without looking: what a measure is compared with."""
    import numpy as np

    draw = random.Random(seed)
    return {key: np.array([draw.random() for _ in range(banks[key].num_experts)]) for key in sorted(banks)}


def counts_by_rank(
    banks: Mapping[BankKey, ExpertBank],
    scores: Scores,
    counts: Mapping[BankKey, int],
    groups: Mapping[str, RouterGroups],
    least: int | None,
) -> dict[BankKey, int]:
    """How many experts each bank keeps if those of all banks of a component are ranked together.

    A component keeps as many in all as with the same number in every layer. Each bank first gets the fewest that it can
    work with; what is left of the number goes to the highest scores of all banks. Where routers choose groups of
    experts, one expert of each group is a step, ranked by the mean of their scores.

    Args:
        banks: The model's banks.
        scores: Bank → [E]; of equal meaning in all banks. Banks that are not in it keep all.
        counts: Bank → how many it would keep if every layer kept the same number.
        groups: Component → groups of its routers.
        least: Experts that every bank keeps at least; None for as many as its router needs.

    Raises:
        UsageError: If ``least`` is more than a bank has, or would keep.
    """
    found = dict(counts)
    for component in {key.component for key in scores}:
        own = sorted(key for key in scores if key.component == component and counts[key] < banks[key].num_experts)
        steps: list[tuple[float, BankKey]] = []
        for key in own:
            bank, size = banks[key], _group_count(banks[key], groups[component])
            fewest = _fewest(bank, counts[key], groups[component], least)
            order = _by_step(scores[key].tolist(), size)
            found[key] = fewest
            steps += [(-sum(step) / size, key) for step in order[fewest // size :]]
        left = sum(counts[key] - found[key] for key in own)
        for _, key in sorted(steps):
            size = _group_count(banks[key], groups[component])
            if left < size:
                break
            found[key] += size
            left -= size
    return found


def _group_count(bank: ExpertBank, groups: RouterGroups) -> int:
    """Into how many groups of one size a bank's experts are divided."""
    return groups.count if bank.num_experts % groups.count == 0 else 1


def _fewest(bank: ExpertBank, count: int, groups: RouterGroups, least: int | None) -> int:
    """The fewest experts that a bank keeps, in whole groups."""
    needed = _least(bank, groups)
    size = _group_count(bank, groups)
    fewest = math.ceil(max(needed, least or 0) / size) * size
    if fewest > count:
        raise UsageError(
            f"At least {fewest} experts of each layer are to be kept, and {count} on average: that leaves no choice.",
            advice="Name a smaller number of experts that each layer keeps at least, or keep more.",
            least=fewest,
            limit=count,
        )
    return fewest


def _by_step(values: Sequence[float], groups: int) -> list[list[float]]:
    """The scores of a bank in steps of one expert of each group, the best of each first."""
    size = len(values) // groups
    ordered = [sorted(values[start : start + size], reverse=True) for start in range(0, len(values), size)]
    return [list(step) for step in zip(*ordered, strict=True)]


def _best(values: Sequence[float], count: int, groups: int) -> tuple[int, ...]:
    if len(values) % groups:
        groups = 1
    size = len(values) // groups
    chosen: list[int] = []
    for start in range(0, len(values), size):
        order = sorted(range(start, start + size), key=lambda expert: (-values[expert], expert))
        chosen += order[: count // groups]
    return tuple(sorted(chosen))
