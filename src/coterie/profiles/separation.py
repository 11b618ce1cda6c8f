"""How far apart modalities, or domains, are in each layer, and how far apart two halves of the same one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from coterie.errors import UsageError
from coterie.profiles.contrast import jensen_shannon
from coterie.profiles.inference import Sample
from coterie.profiles.profile import BankTable, Profile

SEPARATION_SCHEMA_VERSION = 1

SeparatedBy = Literal["modality", "domain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeparation:
    """Two groups of tokens in one bank.

    Attributes:
        component: Part of the model.
        layer: The layer.
        bank: The bank.
        first: The one group.
        second: The other.
        divergence: Jensen–Shannon divergence of the two distributions of activations over experts, in bits: 0 if they
            are equal, 1 if no expert serves both.
        floor: The same between two halves of one group, the larger of the two groups'; None if one has too few
            segments. Halves have half of the tokens, so they differ more by chance than whole groups do.
    """

    component: str
    layer: int
    bank: str
    first: str
    second: str
    divergence: float
    floor: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """All pairs of groups in all layers.

    Attributes:
        schema_version: Version of this form.
        model: Name of the model.
        identity: Its fingerprint.
        by: ``modality`` or ``domain``.
        tokens: Group → tokens.
        layers: By component, layer and bank, then by pair.
    """

    schema_version: int = SEPARATION_SCHEMA_VERSION
    model: str
    identity: str
    by: SeparatedBy
    tokens: dict[str, int]
    layers: tuple[LayerSeparation, ...]


def separation(
    profile: Profile, by: SeparatedBy = "modality", *, phase: str | None = None, component: str | None = None
) -> Separation:
    """Measures how far apart the modalities (or domains) of a profile are, layer by layer.

    Beside each divergence stands a noise floor: what two halves of the same group give, every other block of segments
    against the rest (:mod:`coterie.profiles.inference`), which have the same kinds of text.

    Args:
        profile: Of the model.
        by: What to tell apart.
        phase: Only tokens of this phase.
        component: Only this part of the model.

    Raises:
        UsageError: If the profile has one group only, or for a name that is not known.
    """
    names = profile.modalities if by == "modality" else profile.domains
    if len(names) < 2:
        kind = {"modality": "modalities", "domain": "domains"}[by]
        raise UsageError(
            f"The profile has tokens of {next(iter(names))!r} only: no two {kind} to tell apart.",
            advice="Record others into the same profile.",
            got=list(names),
        )
    masks = group_masks(profile, by, phase=phase)
    layers: list[LayerSeparation] = []
    tokens = dict.fromkeys(names, 0)
    for table in profile.tables(component):
        samples = group_samples(table, masks)
        floors = {name: halves_apart(sample) for name, sample in samples.items()}
        tokens.update({name: max(tokens[name], round(sample.total)) for name, sample in samples.items()})
        layers += [
            LayerSeparation(
                **table.shape.bank._asdict(),
                first=first,
                second=second,
                divergence=samples_apart(samples[first], samples[second]),
                floor=larger(floors[first], floors[second]),
            )
            for first, second in combinations(samples, 2)
        ]
    return Separation(model=profile.model, identity=profile.identity, by=by, tokens=tokens, layers=tuple(layers))


def group_masks(profile: Profile, by: SeparatedBy, *, phase: str | None = None) -> dict[str, npt.NDArray[np.bool_]]:
    """Name of each modality, or domain → its groups of tokens."""
    if by == "modality":
        return {name: profile.where(modality=name, phase=phase) for name in profile.modalities}
    return {name: profile.where(domain=name, phase=phase) for name in profile.domains}


def group_samples(table: BankTable, masks: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, Sample]:
    """Name → the tokens of its groups in a bank; those that have none are left out."""
    samples = {name: table.sample(table.rows(mask)) for name, mask in masks.items()}
    return {name: sample for name, sample in samples.items() if sample.total}


def samples_apart(first: Sample, second: Sample) -> float:
    """Divergence of two samples' activations over experts, in bits."""
    return jensen_shannon(first.hits.sum(axis=0), second.hits.sum(axis=0))


def halves_apart(sample: Sample) -> float | None:
    """Divergence of two halves of a sample; None for fewer than two blocks."""
    if sample.blocks < 2:
        return None
    return samples_apart(*sample.halves(alternating=True))


def larger(first: float | None, second: float | None) -> float | None:
    """The floor of a pair; None if one is not known."""
    return None if first is None or second is None else max(first, second)
