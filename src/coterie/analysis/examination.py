"""Examines the routers of a checkpoint or store, layer by layer; one or two matrices are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from coterie.analysis.agreement import GROUPINGS, Grouping, Match, dominant_groups, match_groups
from coterie.analysis.clusters import LEAST_EXPERTS, Clustering, cluster_rows
from coterie.analysis.geometry import (
    Agreement,
    LayerOverlap,
    Neighbourhood,
    RouterAnalysis,
    RouterLayer,
    UnsupportedRouter,
    answer,
)
from coterie.analysis.matrices import Floats, RouterMatrix, Routers
from coterie.analysis.neighbours import nearest_experts
from coterie.analysis.significance import pooled_p_values
from coterie.analysis.spectrum import Reading, effective_rank, overlap, random_effective_rank, random_overlaps
from coterie.errors import ProfileIdentityError, UnsupportedError, UsageError
from coterie.profiles import Profile, profile_halves
from coterie.profiles.inference import ALPHA, false_discovery_rates
from coterie.profiles.specialisation import figure
from coterie.spec import BankKey, parse_ranges

DRAWS = 99
"""Random arrangements of each layer; p-values are over those of all layers."""
_SHUFFLES = 499
_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Examined:
    """One layer, before it is compared with others."""

    bank: BankKey
    tensor: str
    shape: tuple[int, int]
    effective_rank: float
    clustering: Clustering | None
    matches: dict[Grouping, Match]
    replicated: frozenset[Grouping]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Two neighbouring layers."""

    first: BankKey
    second: BankKey
    overlap: float
    chance: Floats


def examine_routers(
    model: str | Path,
    *,
    profile: str | Path | Profile | None = None,
    component: str | None = None,
    clusters: int | None = None,
    layers: str | Iterable[int] | None = None,
    expert: tuple[int, int] | None = None,
    revision: str | None = None,
    offline: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
    progress: Callable[[int, int], None] | None = None,
) -> RouterAnalysis:
    """Says what the geometry of a model's routers shows. Reads their matrices and nothing else.

    Args:
        model: A store, a checkpoint directory, a Hub id, or ``bundled``.
        profile: A profile of the same model, to compare clusters with.
        component: Only this part of the model.
        clusters: How many clusters to make; None chooses for each layer.
        layers: Only these, such as ``"0-7,12"``.
        expert: (layer, number) of an expert whose neighbours are wanted.
        revision: Branch, tag or commit of a Hub repository.
        offline: Use only what is on this machine.
        seed: Of the random numbers: the same seed gives the same figures, whichever other layers are examined.
        draws: Random arrangements of each layer.
        progress: Told how many layers are done, and how many there are.

    Raises:
        CheckpointError, StoreError: If the model cannot be used.
        UnsupportedError: If none of its routers is one matrix.
        ProfileError: If the profile cannot be read; ProfileIdentityError if it is about another model.
        MissingPackageError: If scikit-learn is not installed.
        UsageError: For a component, layer, expert or number of clusters that there is not.
    """
    routers = Routers.open(model, component=component, revision=revision, offline=offline)
    if not routers.banks:
        key, reason = next(iter(routers.unsupported.items()))
        raise UnsupportedError(
            f"The routers of {routers.name} cannot be examined: that of {key} {reason}.",
            advice="Only a router whose scores are one product with a row for each expert has a geometry to look at.",
            router=reason,
        )
    chosen = _chosen(routers, layers)
    asked = None if expert is None else _expert_bank(routers, expert)
    found = _profile_of(routers, profile)
    halves = () if found is None else profile_halves(found)
    examined: list[_Examined] = []
    pairs: list[_Pair] = []
    last: dict[tuple[str, str], tuple[BankKey, Reading]] = {}
    for index, key in enumerate(chosen):
        matrix = routers.read(key)
        generator = _generator(seed, key)
        examined.append(_examine(matrix, found, halves, generator, clusters, draws))
        reading = Reading.of(matrix.rows)
        before = last.get((key.component, key.bank))
        if before is not None and before[1].width == reading.width:
            chance = random_overlaps(before[1], reading, generator, draws)
            pairs.append(_Pair(first=before[0], second=key, overlap=overlap(before[1], reading), chance=chance))
        last[key.component, key.bank] = (key, reading)
        if progress is not None:
            progress(index + 1, len(chosen))
    results = _layers(examined, seed)
    agreements = _agreements(examined, results)
    return RouterAnalysis(
        answer=answer(results, agreements, groupings=() if found is None else GROUPINGS),
        model=routers.name,
        model_class=routers.model_class,
        identity=routers.identity,
        seed=seed,
        draws=draws,
        layers=results,
        overlaps=_overlaps(pairs),
        agreements=agreements,
        neighbourhood=None if asked is None or expert is None else _neighbourhood(routers, asked, expert[1]),
        unsupported=tuple(
            UnsupportedRouter(**key._asdict(), reason=reason) for key, reason in routers.unsupported.items()
        ),
    )


def _profile_of(routers: Routers, profile: str | Path | Profile | None) -> Profile | None:
    """The profile, read if need be; it has to be one of this model."""
    found = Profile.open(profile, routers.identity) if isinstance(profile, str | Path) else profile
    if found is not None and found.identity != routers.identity:
        raise ProfileIdentityError(
            f"The profile is about {found.model} ({found.identity}), the routers are those of {routers.name} "
            f"({routers.identity}).",
            advice="Record a profile of this model.",
            expected=routers.identity,
            got=found.identity,
        )
    return found


def _chosen(routers: Routers, layers: str | Iterable[int] | None) -> list[BankKey]:
    if layers is None:
        return list(routers.banks)
    there = sorted({key.layer for key in routers.banks})
    wanted = parse_ranges(layers, what="layers") if isinstance(layers, str) else tuple(layers)
    absent = [layer for layer in wanted if layer not in there]
    if absent or not wanted:
        raise UsageError(
            f"Layer {absent[0]} has no router." if absent else "The selection of layers is empty.",
            advice=f"Layers that have one: {', '.join(map(str, there))}.",
            layers=there,
        )
    return [key for key in routers.banks if key.layer in wanted]


def _expert_bank(routers: Routers, expert: tuple[int, int]) -> BankKey:
    layer, _ = expert
    keys = [key for key in routers.banks if key.layer == layer]
    if not keys:
        there = ", ".join(map(str, sorted({key.layer for key in routers.banks})))
        raise UsageError(f"Layer {layer} has no router.", advice=f"Layers that have one: {there}.", layer=layer)
    if len(keys) > 1:
        raise UsageError(
            f"Layer {layer} has several routers: {', '.join(map(str, keys))}.",
            advice="Give the component.",
            layer=layer,
        )
    return keys[0]


def _generator(seed: int, key: BankKey) -> np.random.Generator:
    return np.random.default_rng([seed, key.layer, *f"{key.component}/{key.bank}".encode()])


def _examine(
    matrix: RouterMatrix,
    profile: Profile | None,
    halves: Sequence[Profile],
    generator: np.random.Generator,
    clusters: int | None,
    draws: int,
) -> _Examined:
    experts = len(matrix.rows)
    if clusters is not None and not 2 <= clusters <= experts - 1:
        raise UsageError(
            f"{clusters} clusters of {experts} experts are none.", advice=f"Give 2 to {experts - 1}.", got=clusters
        )
    clustering = None
    matches: dict[Grouping, Match] = {}
    replicated: set[Grouping] = set()
    if experts >= LEAST_EXPERTS:
        clustering = cluster_rows(matrix.rows, generator, number=clusters, draws=draws)
        for grouping in () if profile is None else GROUPINGS:
            whole, *parts = (
                _match(clustering, part, matrix.bank, grouping, generator) for part in (profile, *halves) if part
            )
            if whole is not None:
                matches[grouping] = whole
                if all(part is not None and part.p_value <= ALPHA for part in parts):
                    replicated.add(grouping)
    return _Examined(
        bank=matrix.bank,
        tensor=matrix.tensor,
        shape=(experts, matrix.rows.shape[1]),
        effective_rank=effective_rank(matrix.rows),
        clustering=clustering,
        matches=matches,
        replicated=frozenset(replicated),
    )


def _match(
    clustering: Clustering, profile: Profile, bank: BankKey, grouping: Grouping, generator: np.random.Generator
) -> Match | None:
    table = profile.banks.get(bank)
    if table is None:
        return None
    names, dominant = dominant_groups(profile, table, grouping)
    return match_groups(clustering.labels, names, dominant, generator, _SHUFFLES)


def _layers(examined: list[_Examined], seed: int) -> tuple[RouterLayer, ...]:
    clusterings = [one.clustering for one in examined]
    p_values = _p_values([(one.silhouette, one.chance) if one else None for one in clusterings])
    q_values = false_discovery_rates(p_values)
    ranks = {shape: random_effective_rank(*shape, seed) for shape in {one.shape for one in examined}}
    return tuple(
        RouterLayer(
            **one.bank._asdict(),
            tensor=one.tensor,
            experts=one.shape[0],
            width=one.shape[1],
            effective_rank=one.effective_rank,
            random_effective_rank=ranks[one.shape],
            clusters=one.clustering.number if one.clustering else 0,
            labels=tuple(one.clustering.labels.tolist()) if one.clustering else (0,) * one.shape[0],
            silhouette=figure(one.clustering.silhouette) if one.clustering else None,
            random_silhouette=figure(one.clustering.chance.mean()) if one.clustering else None,
            p_value=figure(p_value),
            q_value=figure(q_value),
            clustered=bool(q_value <= ALPHA),
        )
        for one, p_value, q_value in zip(examined, p_values, q_values, strict=True)
    )


def _agreements(examined: list[_Examined], layers: tuple[RouterLayer, ...]) -> tuple[Agreement, ...]:
    """Those of each grouping in turn; corrected for all of them together."""
    clustered = {BankKey(layer.component, layer.layer, layer.bank) for layer in layers if layer.clustered}
    matched = [
        [(one, grouping, one.matches[grouping]) for one in examined if grouping in one.matches]
        for grouping in GROUPINGS
    ]
    p_values = np.concatenate([_p_values([(match.rand_index, match.chance) for *_, match in one]) for one in matched])
    q_values = false_discovery_rates(p_values)
    return tuple(
        Agreement(
            **one.bank._asdict(),
            grouping=grouping,
            groups=match.groups,
            rand_index=match.rand_index,
            p_value=figure(p_value),
            q_value=figure(q_value),
            replicated=grouping in one.replicated,
            agrees=bool(one.bank in clustered and q_value <= ALPHA and grouping in one.replicated),
        )
        for (one, grouping, match), p_value, q_value in zip(chain(*matched), p_values, q_values, strict=True)
    )


def _overlaps(pairs: list[_Pair]) -> tuple[LayerOverlap, ...]:
    p_values = _p_values([(pair.overlap, pair.chance) for pair in pairs])
    q_values = false_discovery_rates(p_values)
    return tuple(
        LayerOverlap(
            component=pair.first.component,
            bank=pair.first.bank,
            layer=pair.first.layer,
            next_layer=pair.second.layer,
            overlap=pair.overlap,
            random_overlap=float(pair.chance.mean()),
            p_value=figure(p_value),
            q_value=figure(q_value),
        )
        for pair, p_value, q_value in zip(pairs, p_values, q_values, strict=True)
    )


def _p_values(figures: Sequence[tuple[float, Floats] | None]) -> Floats:
    """p-values of figures with their draws; NaN where there is none."""
    draws = next((len(one[1]) for one in figures if one is not None), 1)
    nothing = (np.nan, np.full(draws, np.nan))
    filled = [one or nothing for one in figures]
    found = np.array([value for value, _ in filled])
    return pooled_p_values(found, np.array([chance for _, chance in filled]).reshape(len(filled), draws))


def _neighbourhood(routers: Routers, bank: BankKey, expert: int) -> Neighbourhood:
    rows = routers.read(bank).rows
    if not 0 <= expert < len(rows):
        raise UsageError(
            f"Layer {bank.layer} has no expert {expert}.", advice=f"It has 0 to {len(rows) - 1}.", got=expert
        )
    return Neighbourhood(**bank._asdict(), expert_id=expert, neighbours=nearest_experts(rows, expert, _NEIGHBOURS))
