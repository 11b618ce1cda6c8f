"""The fewest experts that keep a divergence below a bound, and what the sets of several domains share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from coterie.curves.choosing import Chosen, ExpertRanking
from coterie.curves.points import CurvePoint, SharedExperts, SmallestSet
from coterie.errors import UsageError
from coterie.spec import BankKey

RESOLUTION = 256
"""The search ends when it is known to one of so many parts of all experts, or to one expert."""

Measure = Callable[[int], CurvePoint]
"""Measures the model with so many experts of a ranking."""


def find_smallest(ranking: ExpertRanking, bound: float, measure: Measure) -> tuple[int, CurvePoint, int]:
    """The fewest experts with which the divergence is at most the bound, by bisection.

    Args:
        ranking: The experts.
        bound: In nats per token.
        measure: Measures a number of them.

    Returns:
        How many, their point, and how many numbers were measured.

    Raises:
        UsageError: If even all experts do not reach the bound, because the model has fewer bits than the full one.
    """
    tried = 1
    high, found = ranking.total, measure(ranking.total)
    if found.kld.value > bound:
        raise UsageError(
            f"With all its experts the model's divergence is {found.kld.value:.5f} already, more than {bound:g}.",
            advice="Ask for a larger one, or vary the model that it is compared with.",
            bound=bound,
            got=found.kld.value,
        )
    low = ranking.least - 1
    step = max(1, ranking.total // RESOLUTION)
    while high - low > step:
        middle = (low + high) // 2
        point = measure(middle)
        tried += 1
        if point.kld.value <= bound:
            high, found = middle, point
        else:
            low = middle
    return high, found, tried


def shared_experts(sets: Sequence[SmallestSet], banks: Mapping[BankKey, int]) -> tuple[SharedExperts, ...]:
    """What the sets of several domains share, for each bound and ranking.

    Args:
        sets: The sets.
        banks: Bank → how many experts it has.
    """
    found = []
    for bound, by in dict.fromkeys((one.bound, one.by) for one in sets):
        members = {
            one.domain: {(bank, expert) for bank, ids in one.chosen.items() for expert in ids}
            for one in sets
            if (one.bound, one.by) == (bound, by)
        }
        if len(members) < 2:
            continue
        times = Counter(expert for own in members.values() for expert in own)
        every = [expert for expert, count in times.items() if count == len(members)]
        only = {domain: sum(times[expert] == 1 for expert in own) for domain, own in members.items()}
        found.append(
            SharedExperts(
                bound=bound,
                by=by,
                domains=tuple(members),
                core=len(every),
                several=len(times) - len(every) - sum(only.values()),
                only=only,
                none=sum(banks.values()) - len(times),
                layers={str(key): sum(bank == str(key) for bank, _ in every) for key in banks},
            )
        )
    return tuple(found)


def as_text(chosen: Chosen) -> dict[str, tuple[int, ...]]:
    """Ids of experts by the name of their bank."""
    return {str(key): ids for key, ids in chosen.items()}
