"""What the matrices of a model's routers say by themselves, without any data, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.analysis.agreement import Grouping
from coterie.analysis.neighbours import Neighbour

ROUTERS_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLayer:
    """The router of one bank of experts.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        tensor: Name of the matrix in the checkpoint or store.
        experts: E, its rows.
        width: D, its columns.
        effective_rank: exp of the entropy of its singular values scaled to 1 (Roy & Vetterli 2007).
        random_effective_rank: That of a matrix of this shape with independent normal entries.
        clusters: How many clusters suit its rows best, or how many were asked for; 0 with fewer than four experts.
        labels: The cluster of each expert, whether it is more than chance or not.
        silhouette: Mean silhouette of the clusters, cosine distances; None with fewer than four experts.
        random_silhouette: Mean of the same for random arrangements with the same mean and covariance.
        p_value: Of `no more than chance`.
        q_value: The same corrected for the number of layers (Benjamini & Hochberg).
        clustered: Whether q ≤ 0.05: the rows form groups.
    """

    component: str
    layer: int
    bank: str
    tensor: str
    experts: int
    width: int
    effective_rank: float
    random_effective_rank: float
    clusters: int
    labels: tuple[int, ...]
    silhouette: float | None
    random_silhouette: float | None
    p_value: float | None
    q_value: float | None
    clustered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOverlap:
    """How much the routers of two neighbouring layers read the same directions of the hidden state.

    Attributes:
        component: Part of the model.
        bank: Bank.
        layer: The one layer.
        next_layer: The next one that has such a bank.
        overlap: From 0 to 1 (:func:`coterie.analysis.overlap`).
        random_overlap: Mean of the same in random orientations.
        p_value: Of `no more than that`.
        q_value: The same corrected for the number of pairs.
    """

    component: str
    bank: str
    layer: int
    next_layer: int
    overlap: float
    random_overlap: float
    p_value: float | None
    q_value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The clusters of one layer's router against the groups that a profile knows.

    Attributes:
        component: Part of the model.
        layer: The layer.
        bank: The bank.
        grouping: ``modality`` or ``domain``: each expert belongs to the one whose tokens select it the most.
        groups: Name → experts.
        rand_index: Adjusted Rand index: 1 for equal partitions, 0 on average for unrelated ones.
        p_value: Of `unrelated`, by shuffling the groups.
        q_value: The same corrected for all layers and both groupings (Benjamini & Hochberg).
        replicated: Whether it shows in each half of the profile by itself, at p ≤ 0.05.
        agrees: Whether all of it holds: the rows form clusters that are more than chance, q ≤ 0.05, and replicated.
    """

    component: str
    layer: int
    bank: str
    grouping: Grouping
    groups: dict[str, int]
    rand_index: float
    p_value: float | None
    q_value: float | None
    replicated: bool
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """The experts that are nearest to one.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        expert_id: Its number.
        neighbours: The others, the largest cosine first.
    """

    component: str
    layer: int
    bank: str
    expert_id: int
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupportedRouter:
    """A router that is not one matrix.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        reason: What it is instead.
    """

    component: str
    layer: int
    bank: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterAnalysis:
    """What a model's routers say.

    Attributes:
        schema_version: Version of this form.
        answer: All of it in one sentence.
        model: Directory or Hub id.
        model_class: transformers class.
        identity: Fingerprint of the model.
        seed: Of the random numbers.
        draws: Random arrangements of each layer.
        layers: In order of component, layer and bank.
        overlaps: Of each layer with the next.
        agreements: With a profile; empty without one.
        neighbourhood: Of the expert that was asked about.
        unsupported: Routers that are not one matrix.
    """

    schema_version: int = ROUTERS_SCHEMA_VERSION
    answer: str
    model: str
    model_class: str
    identity: str
    seed: int
    draws: int
    layers: tuple[RouterLayer, ...]
    overlaps: tuple[LayerOverlap, ...]
    agreements: tuple[Agreement, ...]
    neighbourhood: Neighbourhood | None
    unsupported: tuple[UnsupportedRouter, ...]


def answer(
    layers: tuple[RouterLayer, ...], agreements: tuple[Agreement, ...], *, groupings: tuple[Grouping, ...]
) -> str:
    """One sentence on clusters, and what they have to do with the profile's groupings that were asked about."""
    clustered = sum(layer.clustered for layer in layers)
    if clustered:
        parts = [f"Router rows form clusters in {clustered} of {len(layers)} layers"]
    else:
        parts = [
            f"In none of {len(layers)} layers do router rows form clusters: they lie as random rows of the same mean "
            "and covariance do"
        ]
    parts += [_agreement(grouping, agreements) for grouping in groupings]
    return "; ".join(parts) + "."


def _agreement(grouping: Grouping, agreements: tuple[Agreement, ...]) -> str:
    found = [one for one in agreements if one.grouping == grouping]
    if not found:
        return f"the profile has no two {_PLURALS[grouping]} whose experts could be told apart"
    agreeing = [one.rand_index for one in found if one.agrees]
    if not agreeing:
        return f"they show nothing of the recorded {_PLURALS[grouping]} (in none of {len(found)} layers)"
    span = f"{min(agreeing):.2f}" + (f" to {max(agreeing):.2f}" if len(agreeing) > 1 else "")
    return (
        f"they show the recorded {_PLURALS[grouping]} in {len(agreeing)} of {len(found)} (adjusted Rand index {span})"
    )


_PLURALS: dict[Grouping, str] = {"modality": "modalities", "domain": "domains"}
