"""All that is known of one expert."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.errors import UsageError
from coterie.profiles.companions import Companion, companions
from coterie.profiles.database import ProfileDatabase
from coterie.profiles.heavy_tokens import HeavyToken, heavy_tokens, token_table
from coterie.profiles.profile import BankTable, Profile
from coterie.profiles.ranking import RankedExpert, ranked_experts
from coterie.profiles.specialisation import Flags, figure, specialisation
from coterie.profiles.trust import TrustBasis, trust
from coterie.spec import ExpertKey, format_ranges

CARD_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedShare:
    """An expert's figures for the tokens of one name.

    Attributes:
        name: Of a domain or modality.
        figures: What a ranking says of the expert.
    """

    name: str
    figures: RankedExpert


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCard:
    """One expert.

    Attributes:
        schema_version: Version of this form.
        model: Name of the model.
        identity: Its fingerprint.
        component: Part of the model.
        layer: Its layer.
        bank: Its bank.
        expert_id: Its number there.
        experts: Experts of its bank.
        tokens: Tokens that passed its router.
        activations: Of these that selected it.
        gate_share: Share of the layer's gate mass that it got.
        reap_score: Mean of gate weight × ‖expert output‖₂ over the tokens that select it; None if not measured.
        trust: Trust score, 0 to 1.
        trust_basis: What it is made of: ``reap``, or ``gate`` where outputs were not measured.
        trust_observations: Activations behind it.
        domains: Its figures for each domain.
        modalities: Its figures for each modality.
        top_tokens: Input tokens by vocabulary specialisation; empty if tokens were not counted.
        tokenizer: Whose ids those are.
        companions: Experts that are chosen together with it.
    """

    schema_version: int = CARD_SCHEMA_VERSION
    model: str
    identity: str
    component: str
    layer: int
    bank: str
    expert_id: int
    experts: int
    tokens: int
    activations: int
    gate_share: float
    reap_score: float | None
    trust: float
    trust_basis: TrustBasis
    trust_observations: int
    domains: tuple[NamedShare, ...]
    modalities: tuple[NamedShare, ...]
    top_tokens: tuple[HeavyToken, ...]
    tokenizer: str
    companions: tuple[Companion, ...]


def expert_card(
    profile: Profile,
    database: ProfileDatabase,
    layer: int,
    expert: int,
    *,
    component: str | None = None,
    bank: str | None = None,
) -> ExpertCard:
    """What one expert does: domains, modalities, tokens, companions, trust.

    Args:
        profile: Of the model.
        database: Where it was read from: counts of pairs and tokens are read now.
        layer: Of the expert.
        expert: Its number.
        component: Needed where several components have the layer.
        bank: Needed where the layer has several banks.

    Raises:
        UsageError: If there is no such expert, or more than one.
    """
    table = find_bank(profile, layer, component=component, bank=bank)
    key = table.shape.bank
    if not 0 <= expert < table.shape.experts:
        raise UsageError(
            f"{key} has no expert {expert}.", advice=f"Its experts are 0 to {table.shape.experts - 1}.", got=expert
        )
    known = trust(table)
    gates = table.gate_mass.sum(axis=0)
    measured = int(table.reap_counts[:, expert].sum())
    tokens, activations = int(table.tokens.sum()), int(table.activations[:, expert].sum())
    words = token_table(profile, database, key)
    return ExpertCard(
        model=profile.model,
        identity=profile.identity,
        **key._asdict(),
        expert_id=expert,
        experts=table.shape.experts,
        tokens=tokens,
        activations=activations,
        gate_share=float(gates[expert] / gates.sum()) if gates.sum() > 0 else 0.0,
        reap_score=figure(table.reap_sum[:, expert].sum() / measured) if measured else None,
        trust=float(known.scores[expert]),
        trust_basis=known.basis,
        trust_observations=int(known.observations[expert]),
        domains=_shares(profile, key.expert(expert), {name: profile.where(domain=name) for name in profile.domains}),
        modalities=_shares(
            profile, key.expert(expert), {name: profile.where(modality=name) for name in profile.modalities}
        ),
        top_tokens=() if words is None else heavy_tokens(words, expert, activations / tokens),
        tokenizer=next((run.tokenizer for run in profile.runs if run.tokenizer), ""),
        companions=companions(profile, database, key, expert),
    )


def find_bank(profile: Profile, layer: int, *, component: str | None = None, bank: str | None = None) -> BankTable:
    """The one bank of a layer that fits.

    Raises:
        UsageError: If there is none, or more than one; says which there are.
    """
    fitting = [
        table
        for key, table in profile.banks.items()
        if key.layer == layer and component in (None, key.component) and bank in (None, key.bank)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(str(table.shape.bank) for table in fitting)
        raise UsageError(
            f"Layer {layer} has several banks of experts: {names}.", advice="Say which: component, bank.", got=layer
        )
    raise UsageError(
        f"The profile has no such bank of experts in layer {layer}.",
        advice=_banks_there(profile, component=component, bank=bank),
        got=layer,
    )


def _banks_there(profile: Profile, *, component: str | None, bank: str | None) -> str:
    """Which layers there are, of those components and banks that were asked for if there are any."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for key in profile.banks:
        kinds.setdefault((key.component, key.bank), []).append(key.layer)
    asked = {kind: kinds[kind] for kind in kinds if component in (None, kind[0]) and bank in (None, kind[1])}
    parts = [
        f"layers {format_ranges(layers)} of {part}" + ("" if name == "mlp" else f" ({name})")
        for (part, name), layers in (asked or kinds).items()
    ]
    return f"It has {'; '.join(parts)}."


def _shares(profile: Profile, key: ExpertKey, masks: dict[str, Flags]) -> tuple[NamedShare, ...]:
    found = []
    for name, selected in masks.items():
        for result in specialisation(profile, selected, ~selected, key.component):
            if result.shape.bank == key.bank_key:
                (figures,) = ranked_experts(result, [key.expert])
                found.append(NamedShare(name=name, figures=figures))
    found.sort(key=lambda share: -share.figures.specialisation)
    return tuple(found)
