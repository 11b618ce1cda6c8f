"""A profile as a file for others to read: JSON or JSON lines, one entry per expert."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coterie.profiles.companions import lifts, pair_counts, pair_matrix
from coterie.profiles.database import ProfileDatabase
from coterie.profiles.facts import Modality
from coterie.profiles.profile import BankTable, Profile
from coterie.profiles.specialisation import Specialisation, specialisation
from coterie.profiles.trust import TrustBasis, trust

EXPORT_SCHEMA_VERSION = 1
_COMPANIONS = 3
_LEAST_EXPECTED = 5
"""Tokens that two experts should share by chance before their lift means anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedDomain:
    """What an expert does in one domain.

    Attributes:
        specialisation: Share of the domain's tokens that select it.
        gate_share: Share of the layer's gate mass that it got on them.
        tokens: Tokens of the domain.
        specialist: Whether it is a specialist of the domain: see docs/profiles.md.
    """

    specialisation: float
    gate_share: float
    tokens: int
    specialist: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCompanion:
    """An expert of the same bank that is chosen together with this one.

    Attributes:
        expert_id: Its number.
        lift: How much more often than if the two were independent.
    """

    expert_id: int
    lift: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedExpert:
    """One expert, as others read it.

    Attributes:
        expert_id: Its number in the bank.
        layer: Its layer.
        component: Part of the model: thinker, talker, text, encoder or decoder.
        bank: Its bank, almost always mlp.
        primary_modality: The modality whose tokens select it most often, in relation to their number; None if it was
            never selected.
        domains: Domain → what it does there.
        activation_frequency: Share of all tokens that select it.
        co_activated_with: Up to three experts, by lift.
        trust_score: Trust, 0 to 1.
        trust_basis: What trust is made of: reap, or gate where outputs were not measured.
        activations: Tokens that selected it.
    """

    expert_id: int
    layer: int
    component: str
    bank: str
    primary_modality: Modality | None
    domains: dict[str, SharedDomain]
    activation_frequency: float
    co_activated_with: tuple[SharedCompanion, ...]
    trust_score: float
    trust_basis: TrustBasis
    activations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedProfile:
    """What is said of all experts together.

    Attributes:
        schema_version: Version of this form.
        model: Name of the model.
        model_class: Its transformers class.
        identity: Its fingerprint.
        runs: Recording runs behind it.
        tokens: Tokens behind it.
        domains: Domain → tokens.
        modalities: Modality → tokens.
        experts: Every expert that was observed, in order of component, layer, bank and number.
    """

    schema_version: int = EXPORT_SCHEMA_VERSION
    model: str
    model_class: str
    identity: str
    runs: int
    tokens: int
    domains: dict[str, int]
    modalities: dict[str, int]
    experts: tuple[SharedExpert, ...]


def share_profile(profile: Profile, database: ProfileDatabase) -> SharedProfile:
    """The profile in the form that is shared: no token ids, no names of inputs, no labels of runs.

    Args:
        profile: Of the model.
        database: Where it was read from: counts of pairs are read now.
    """
    results: dict[str, dict[object, Specialisation]] = {}
    for domain in profile.domains:
        selected = profile.where(domain=domain)
        results[domain] = {found.shape.bank: found for found in specialisation(profile, selected, ~selected)}
    experts: list[SharedExpert] = []
    for key, table in profile.banks.items():
        experts += _bank(
            profile, database, table, {name: found[key] for name, found in results.items() if key in found}
        )
    return SharedProfile(
        model=profile.model,
        model_class=profile.model_class,
        identity=profile.identity,
        runs=len(profile.runs),
        tokens=profile.tokens,
        domains=profile.domains,
        modalities=profile.modalities,
        experts=tuple(experts),
    )


def _bank(
    profile: Profile, database: ProfileDatabase, table: BankTable, results: dict[str, Specialisation]
) -> Iterator[SharedExpert]:
    known = trust(table)
    activations = table.activations.sum(axis=0)
    tokens = int(table.tokens.sum())
    primary = _primary_modalities(profile, table)
    together = _companions(profile, database, table)
    special = {name: result.specialists for name, result in results.items()}
    for expert in range(table.shape.experts):
        yield SharedExpert(
            expert_id=expert,
            layer=table.shape.bank.layer,
            component=table.shape.bank.component,
            bank=table.shape.bank.bank,
            primary_modality=primary[expert],
            domains={
                name: SharedDomain(
                    specialisation=float(result.shares[expert]),
                    gate_share=float(result.gate_shares[expert]),
                    tokens=result.tokens,
                    specialist=bool(special[name][expert]),
                )
                for name, result in results.items()
            },
            activation_frequency=int(activations[expert]) / tokens,
            co_activated_with=together[expert],
            trust_score=float(known.scores[expert]),
            trust_basis=known.basis,
            activations=int(activations[expert]),
        )


def _primary_modalities(profile: Profile, table: BankTable) -> list[Modality | None]:
    names = sorted({group.modality for group in profile.groups})
    shares = np.zeros((len(names), table.shape.experts))
    for place, name in enumerate(names):
        rows = table.rows(profile.where(modality=name))
        if len(rows):
            shares[place] = table.activations[rows].sum(axis=0) / max(int(table.tokens[rows].sum()), 1)
    best = shares.argmax(axis=0)
    return [names[best[e]] if shares[best[e], e] > 0 else None for e in range(table.shape.experts)]


def _companions(profile: Profile, database: ProfileDatabase, table: BankTable) -> list[tuple[SharedCompanion, ...]]:
    experts = table.shape.experts
    total = np.zeros(experts * (experts - 1) // 2, np.int64)
    for _, pairs in pair_counts(profile, database, table.shape.bank):
        total += pairs
    activations = table.activations.sum(axis=0).astype(np.float64)
    expected = np.outer(activations, activations) / max(int(table.tokens.sum()), 1)
    lift = np.where(expected >= _LEAST_EXPECTED, lifts(table, pair_matrix(total, experts)), 0.0)
    best = np.argsort(-lift, axis=1, kind="stable")[:, :_COMPANIONS]
    return [
        tuple(
            SharedCompanion(expert_id=other, lift=float(lift[expert, other]))
            for other in best[expert].tolist()
            if lift[expert, other] > 1
        )
        for expert in range(experts)
    ]


def json_lines(shared: SharedProfile) -> Iterator[str]:
    """The profile as JSON lines: first what is said of all, then one expert a line."""
    whole = dataclasses.asdict(shared)
    experts = whole.pop("experts")
    yield json.dumps(whole, ensure_ascii=False)
    for expert in experts:
        yield json.dumps(expert, ensure_ascii=False)
