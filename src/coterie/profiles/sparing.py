"""Which experts a workload can do without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coterie.errors import UsageError
from coterie.profiles.inference import share_interval
from coterie.profiles.profile import BankTable, Profile
from coterie.profiles.specialisation import Flags, figure

SPARING_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpareExpert:
    """An expert that the workload hardly uses.

    Attributes:
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        expert_id: Its number there.
        activations: Tokens of the workload that selected it.
        specialisation: Share of the workload's tokens that do.
        high: Upper end of that share's 95 % interval; None with too few segments. For an expert that was never
            selected: how often it may be selected yet.
        gate_share: Share of the layer's gate mass that it got.
        contribution_share: Share of the layer's sum of gate weight × ‖expert output‖₂; None if that was not measured.
        lost: Share of the layer's gate mass that goes with this expert and all that are spared before it.
    """

    component: str
    layer: int
    bank: str
    expert_id: int
    activations: int
    specialisation: float
    high: float | None
    gate_share: float
    contribution_share: float | None
    lost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparing:
    """Experts that a workload can do without.

    Attributes:
        schema_version: Version of this form.
        model: Name of the model.
        identity: Its fingerprint.
        domain: The workload's domain; None for all.
        modality: Its modality; None for all.
        phase: Its phase; None for both.
        tokens: Tokens of the workload.
        never: Experts that it never selected.
        total: Experts that were examined.
        gate_mass_lost: Mean over the layers of the share of gate mass that goes with all experts of the list.
        experts: Layer by layer, the least contributing first.
    """

    schema_version: int = SPARING_SCHEMA_VERSION
    model: str
    identity: str
    domain: str | None
    modality: str | None
    phase: str | None
    tokens: int
    never: int
    total: int
    gate_mass_lost: float
    experts: tuple[SpareExpert, ...]


def spare_experts(
    profile: Profile,
    *,
    domain: str | None = None,
    modality: str | None = None,
    phase: str | None = None,
    component: str | None = None,
    share: float | None = None,
    most_lost: float = 0.0,
) -> Sparing:
    """Finds the experts whose absence a workload would feel least.

    Experts of a layer are ordered by their sum of gate weight × ‖expert output‖₂ over the workload's tokens, or by
    gate mass where outputs were not measured. What is lost is counted as gate mass, which says how much of the
    layer's output is at stake, not how much worse the model gets: that is measured by `coterie evaluate`. At least k
    experts of a layer always stay.

    Args:
        profile: Of the model.
        domain: The workload's domain.
        modality: Its modality.
        phase: Its phase.
        component: Only this part of the model.
        share: Share of each layer's experts to spare; None spares as many as ``most_lost`` allows.
        most_lost: Share of a layer's gate mass that may go, where ``share`` is None; 0 spares those never selected.

    Raises:
        UsageError: If a share is not between 0 and 1, or a name is not known; says which are.
    """
    for name, value in (("share", share), ("most_lost", most_lost)):
        if value is not None and not 0 <= value < 1:
            raise UsageError(f"{name}={value} is not a share.", advice="Give a number from 0 to below 1.", got=value)
    selected = profile.where(domain=domain, modality=modality, phase=phase)
    spared: list[SpareExpert] = []
    lost, tokens, never, total = [], 0, 0, 0
    for table in profile.tables(component):
        rows = table.rows(selected)
        if not len(rows):
            continue
        activations = table.activations[rows].sum(axis=0)
        found = _spare_of_bank(table, selected, share, most_lost)
        spared += found
        lost.append(found[-1].lost if found else 0.0)
        tokens = max(tokens, int(table.tokens[rows].sum()))
        never += int((activations == 0).sum())
        total += table.shape.experts
    return Sparing(
        model=profile.model,
        identity=profile.identity,
        domain=domain,
        modality=modality,
        phase=phase,
        tokens=tokens,
        never=never,
        total=total,
        gate_mass_lost=float(np.mean(lost)) if lost else 0.0,
        experts=tuple(spared),
    )


def _spare_of_bank(table: BankTable, selected: Flags, share: float | None, most_lost: float) -> list[SpareExpert]:
    rows = table.rows(selected)
    sample = table.sample(rows)
    activations = table.activations[rows].sum(axis=0)
    gates, reap = table.gate_mass[rows].sum(axis=0), table.reap_sum[rows].sum(axis=0)
    gate_shares = gates / gates.sum() if gates.sum() > 0 else np.zeros_like(gates)
    measured = table.reap_counts[rows].sum() > 0
    order = np.lexsort((np.arange(len(gates)), gates, reap if measured else gates))
    lost = np.cumsum(gate_shares[order])
    experts = table.shape.experts
    count = int(share * experts) if share is not None else int(np.searchsorted(lost, most_lost + 1e-12, "right"))
    spared = order[: min(count, experts - table.shape.top_k)].tolist()
    _, high = share_interval(sample.of(spared))
    shares = sample.shares()
    return [
        SpareExpert(
            **table.shape.bank._asdict(),
            expert_id=expert,
            activations=int(activations[expert]),
            specialisation=float(shares[expert]),
            high=figure(high[place]),
            gate_share=float(gate_shares[expert]),
            contribution_share=float(reap[expert] / reap.sum()) if measured and reap.sum() > 0 else None,
            lost=float(lost[place]),
        )
        for place, expert in enumerate(spared)
    ]
