"""From a profile, a budget and a model's weights to the scheme of every expert."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coterie.errors import UsageError
from coterie.extraction.allocation.allocation import Allocated, Allocation, AllocationReport
from coterie.extraction.allocation.choosing import ABSENCE, Candidate, Level, choose, smallest_nbytes
from coterie.extraction.allocation.levels import LevelMeasure, Measured
from coterie.extraction.allocation.reporting import component_choices, matrix_levels, matrix_weights
from coterie.extraction.progress import Meter, ProgressCallback
from coterie.extraction.quantising import SchemedExperts
from coterie.hf.modalities import served_modalities
from coterie.origins import Origin
from coterie.spec import BankKey, ExpertKey, format_bytes, parse_bytes
from coterie.spec.encodings import record_scheme
from coterie.store import AllocationFacts

if TYPE_CHECKING:
    from coterie.profiles import ErrorWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The experts of a component that are to get levels.

    Attributes:
        keys: Who.
        candidates: What each can have.
        weights: Weights of all of their matrices.
    """

    keys: tuple[ExpertKey, ...]
    candidates: tuple[Candidate, ...]
    weights: int


Levels = dict[ExpertKey, tuple[Level, ...]]
"""Expert that stays → the level of each of its matrices."""


def allocate(
    origin: Origin,
    chosen: Mapping[BankKey, Sequence[int]],
    request: Allocation,
    progress: ProgressCallback | None = None,
) -> Allocated:
    """Chooses the scheme of every matrix of every expert. Reads all of them, and downloads those that are not here.

    An expert's error in a scheme is that of its weights in it, measured, times its weight by the profile. The sum of
    these is made least, in each component by itself. Without domains that is the mean of what an expert adds, each
    matrix by itself; see :func:`coterie.profiles.error_weights`.

    Args:
        origin: The model.
        chosen: Bank → ids of the experts that the store is to have.
        request: What is asked for.
        progress: Told about bytes and time left.

    Raises:
        ProfileError: If the profile cannot be used, or is another model's.
        UsageError: If the profile lacks a domain, a modality or a layer, or if the budget cannot be met.
        CoterieError: If an expert cannot be downloaded, read or quantised.
    """
    # Imported where it is needed: extraction without a profile shall not pay for a database.
    from coterie.profiles import Usage, error_weights
    from coterie.profiles.importance import FEW_OBSERVATIONS

    banks = [key for key, ids in chosen.items() if ids]
    usage = Usage.open(request.profile or "", origin.identity)
    required = {name: served_modalities(origin.model.config, name) for name in {key.component for key in banks}}
    domains = tuple(sorted(set(request.domains)))
    weights = error_weights(usage, banks, required, domains=domains, modalities=request.modalities)
    if weights.activations < FEW_OBSERVATIONS:
        warnings.warn(
            f"In some layer, an expert was chosen {weights.activations:.1f} times on average for one of the kinds of "
            f"tokens that decide: below {FEW_OBSERVATIONS}, which experts get bits is mostly chance. Record more.",
            stacklevel=3,
        )
    keys = [key.expert(expert) for key in sorted(banks) for expert in chosen[key]]
    measured = _measure(origin, keys, progress)
    components = {
        name: _experts(origin, name, measured, weights, absence=bool(domains))
        for name in sorted({key.component for key in banks})
    }
    levels = _within(origin, components, request)
    schemes = schemes_of(levels)
    if len(schemes) == len(keys) and all(schemes[key] == origin.scheme(key) for key in keys):
        raise UsageError(
            "Nothing would be rounded: all experts fit as they are.",
            advice="Give them fewer bits, or make the store without an allocation.",
        )
    sizes = SchemedExperts(origin, schemes.__getitem__)
    nbytes = {key: sizes.layout(key).nbytes for key in schemes}
    count = sum(one.weights for one in components.values())
    used = 8 * sum(level.nbytes for of in levels.values() for level in of)
    tokens_of = {name: tuple(map(str, claims)) for name, claims in sorted(weights.claims.items())}
    report = AllocationReport(
        criterion=weights.measure,
        domains=domains,
        tokens_of=tokens_of,
        profile=weights.fingerprint,
        bits=used / count,
        nbytes=sum(nbytes.values()),
        left_out=len(keys) - len(schemes),
        components=tuple(component_choices(origin, name, measured, levels, weights) for name in components),
        matrices=matrix_levels(keys, measured, levels),
    )
    facts = AllocationFacts(
        criterion=weights.measure,
        domains=domains,
        tokens_of=tokens_of,
        profile=weights.fingerprint,
        bits=round(1000 * report.bits),
        left_out=report.left_out,
    )
    return Allocated(schemes=schemes, facts=facts, report=report)


def _measure(origin: Origin, keys: Sequence[ExpertKey], progress: ProgressCallback | None) -> dict[ExpertKey, Measured]:
    meter = Meter("measure", sum(origin.layout(key).nbytes for key in keys), progress)
    found: dict[ExpertKey, Measured] = {}
    measure = LevelMeasure(origin)
    try:
        for bank in dict.fromkeys(key.bank_key for key in keys):
            own = [key for key in keys if key.bank_key == bank]
            origin.download(name for key in own for name in origin.names_of(key))
            for key, levels in measure.measure(own):
                found[key] = levels
                meter.advance(origin.layout(key).nbytes)
    finally:
        measure.close()
    return found


def _experts(
    origin: Origin, component: str, measured: Mapping[ExpertKey, Measured], weights: ErrorWeights, *, absence: bool
) -> Experts:
    """The experts of a component with what they can have, weighted."""
    keys = tuple(key for key in measured if key.component == component)
    stay = _needed(origin, keys, weights) if absence else set(keys)
    candidates = []
    for key in keys:
        weight = float(weights.weights[key.bank_key][key.expert])
        matrices = tuple(
            tuple(Level(scheme=one.scheme, nbytes=one.nbytes, cost=weight * one.error) for one in levels)
            for levels in measured[key].values()
        )
        candidates.append(Candidate(matrices=matrices, absence=None if key in stay else ABSENCE * weight))
    return Experts(
        keys=keys, candidates=tuple(candidates), weights=sum(matrix_weights(origin, key.bank_key) for key in keys)
    )


def _needed(origin: Origin, keys: Iterable[ExpertKey], weights: ErrorWeights) -> set[ExpertKey]:
    """The experts of each bank that have to stay, so that a token finds as many as its router chooses."""
    by_bank: dict[BankKey, list[ExpertKey]] = {}
    for key in keys:
        by_bank.setdefault(key.bank_key, []).append(key)
    found: set[ExpertKey] = set()
    for bank, own in by_bank.items():
        order = sorted(own, key=lambda key: (-float(weights.weights[key.bank_key][key.expert]), key.expert))
        found.update(order[: origin.model.banks[bank].bank.choices or 1])
    return found


def _within(origin: Origin, components: Mapping[str, Experts], request: Allocation) -> Levels:
    """The levels with which experts have the bits, or take the bytes, that they may.

    Raises:
        UsageError: If they need more, and how much.
    """
    least = {name: smallest_nbytes(one.candidates) for name, one in components.items()}
    if request.bits is None:
        return _within_bytes(origin, components, least, request)
    budgets = {name: int(request.bits * one.weights / 8) for name, one in components.items()}
    bits = max(math.ceil(800 * least[name] / one.weights) / 100 for name, one in components.items())
    if any(budgets[name] < least[name] for name in components):
        raise UsageError(
            f"Experts cannot have {request.bits:g} bits per weight, scales counted.",
            advice=f"Give them at least {bits:g}{_fewer(request)}.",
            least=bits,
        )
    return _levels(components, budgets)


def _within_bytes(
    origin: Origin, components: Mapping[str, Experts], least: Mapping[str, int], request: Allocation
) -> Levels:
    wanted = parse_bytes(request.expert_bytes or 0, what="expert bytes")
    total = sum(one.weights for one in components.values())
    left, less, before = wanted, 0, 0
    while True:
        budgets = {name: max(least[name], left * one.weights // total) for name, one in components.items()}
        levels = _levels(components, budgets)
        takes = _record_nbytes(origin, levels)
        if takes <= wanted:
            return levels
        if budgets == least:
            raise UsageError(
                f"Experts cannot be stored in {format_bytes(wanted)}.",
                advice=f"Give them at least {format_bytes(takes)}{_fewer(request)}.",
                least=takes,
            )
        # Records are filled up to whole pages, and have what is no matrix, too. If so little less changes nothing,
        # twice as much less is tried.
        less = 2 * less if takes == before else takes - wanted
        left, before = left - less, takes


def _fewer(request: Allocation) -> str:
    return "" if request.domains else ", or let some be left out: --for names the domains whose experts stay"


def _levels(components: Mapping[str, Experts], budgets: Mapping[str, int]) -> Levels:
    found: Levels = {}
    for name, one in components.items():
        chosen = choose(one.candidates, budgets[name])
        found |= {key: levels for key, levels in zip(one.keys, chosen, strict=True) if levels is not None}
    return found


def _record_nbytes(origin: Origin, levels: Levels) -> int:
    schemes = schemes_of(levels)
    sizes = SchemedExperts(origin, schemes.__getitem__)
    return sum(sizes.layout(key).nbytes for key in schemes)


def schemes_of(levels: Levels) -> dict[ExpertKey, str]:
    """The scheme of the record of each expert."""
    return {key: record_scheme([level.scheme for level in of]) for key, of in levels.items()}
