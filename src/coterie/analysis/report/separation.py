"""Are experts partitioned by modality, or by domain, or do they blend? Do experts of several modalities serve one?"""

from __future__ import annotations

import numpy as np

from coterie.analysis.plots.selection import bank_labels
from coterie.analysis.report.findings import Answer, Claim, Picture, Table, claim_above, claim_counted, shown
from coterie.analysis.report.material import PLURALS, Flags, Material, divergences, floors, mean
from coterie.profiles import Profile
from coterie.profiles.halves import FOLDS
from coterie.profiles.inference import ALPHA, LEAST_SEGMENTS
from coterie.profiles.separation import SeparatedBy
from coterie.profiles.specialisation import Specialisation

PARTITIONED = 0.5
"""Bits of mean divergence from which on experts are called partitioned: nearer to having no expert in common than to
having all."""
_PER_DOMAIN = 20


def partition(material: Material, by: SeparatedBy) -> Answer:
    """Whether modalities, or domains, have experts of their own."""
    names, groups = material.known(by), PLURALS[by]
    question = {
        "modality": "Are experts partitioned by modality, or do they blend?",
        "domain": "Do domains have experts of their own?",
    }[by]
    notes = _left_out(material, by)
    if len(names) < 2:
        return Answer(
            key=groups,
            question=question,
            answer=f"The data do not tell: fewer than two {groups} have enough segments.",
            notes=notes,
        )
    tokens = material.tokens_of(by)
    found, chance = material.apart(by)
    apart = claim_above(f"mean divergence of two {groups}", found, chance, tokens=tokens, unit="bits")
    results = material.specialisations(by)
    special = [np.concatenate([one.specialists for one in banks]) for banks in results.values()]
    everywhere = [np.concatenate([one.above_chance for one in banks]) for banks in results.values()]
    total = len(special[0])
    claims = (
        apart,
        _share(f"experts that are specialists of some {by}", np.logical_or.reduce(special), tokens),
        _share(f"experts above chance in every {by}", np.logical_and.reduce(everywhere), tokens),
    )
    return Answer(
        key=groups,
        question=question,
        answer=_sentence(by, claims, total),
        claims=claims,
        tables=(_by_layer(material, by, results), _specialists(results, by)),
        pictures=(Picture(name="modalities", title="How far apart modalities are in each layer"),)
        if by == "modality"
        else (),
        notes=notes,
    )


def _left_out(material: Material, by: SeparatedBy) -> tuple[str, ...]:
    names = material.too_small(by)
    if not names:
        return ()
    return (
        f"Left out, because they have fewer than {LEAST_SEGMENTS} segments: {', '.join(names)}. Record more of them, "
        "or record them again with fewer tokens in a segment (--segment-tokens).",
    )


def _share(name: str, flags: Flags, tokens: int) -> Claim:
    return claim_counted(f"share of {name}", float(flags.mean()), tokens=tokens, unit="%")


def _sentence(by: SeparatedBy, claims: tuple[Claim, ...], total: int) -> str:
    apart, special, everywhere = claims
    counts = (
        f"{shown(special.value, '%')} of {total:,} experts are specialists of some {by}, "
        f"{shown(everywhere.value, '%')} are above chance in every one"
    )
    value = f"{shown(apart.value, 'bits')} of 1, with a noise floor of {shown(apart.chance, 'bits')}"
    if apart.verdict == "too little data":
        return f"The data do not tell how far apart {PLURALS[by]} are; {counts}."
    if not apart.holds:
        why = {"not shown": "is not above noise", "does not replicate": "does not replicate"}[apart.verdict]
        return f"Nothing is shown: the divergence of two {PLURALS[by]} ({value}) {why}; {counts}."
    if apart.value is not None and apart.value > PARTITIONED:
        return f"They are partitioned by {by}: mean divergence of two {PLURALS[by]} {value}; {counts}."
    return f"They blend, with a preference that is not noise: mean divergence of two {PLURALS[by]} {value}; {counts}."


def _by_layer(material: Material, by: SeparatedBy, results: dict[str, list[Specialisation]]) -> Table:
    profile, masks = material.stretches.profile, material.masks(by)
    apart = zip(divergences(profile, masks), floors(profile, masks), strict=True)
    labels = bank_labels([table.shape.bank for table in material.profile.tables()])
    by_bank = {name: {one.shape.bank: int(one.specialists.sum()) for one in banks} for name, banks in results.items()}
    rows = [
        (
            label,
            shown(divergence),
            shown(floor),
            *(str(counts.get(table.shape.bank, 0)) for counts in by_bank.values()),
        )
        for label, (divergence, floor), table in zip(labels, apart, material.profile.tables(), strict=True)
    ]
    return Table(
        title="By layer: divergence in bits, noise floor, and how many experts are specialists",
        columns=("layer", "divergence", "floor", *results),
        rows=tuple(rows),
    )


def _specialists(results: dict[str, list[Specialisation]], by: SeparatedBy) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, banks in results.items():
        places = [
            (-float(one.shares[expert] / one.chance), one.shape.bank.layer, int(expert), one)
            for one in banks
            for expert in np.flatnonzero(one.specialists)
        ]
        places.sort(key=lambda place: place[:3])
        listed = ", ".join(f"{layer}:{expert} (×{-lift:.1f})" for lift, layer, expert, _ in places[:_PER_DOMAIN])
        more = f", and {len(places) - _PER_DOMAIN} more" if len(places) > _PER_DOMAIN else ""
        rows.append((name, str(len(places)), f"{banks[0].tokens:,}" if banks else "0", (listed + more) or "none"))
    return Table(
        title="Specialists, LAYER:EXPERT (times chance)",
        columns=(by, "specialists", "tokens", "experts"),
        rows=tuple(rows),
    )


def cross_modal(material: Material) -> Answer:
    """Whether experts that serve several modalities are chosen where the input is of one.

    Which experts these are is learnt from one half and looked for in the other, since an expert that is chosen often is
    above chance by choice.
    """
    question = "Do cross-modal experts fire on single-modality input?"
    names = material.known("modality")
    if len(names) < 2:
        answer = "The data do not tell: fewer than two modalities have enough segments."
        return Answer(key="cross_modal", question=question, answer=answer, notes=_left_out(material, "modality"))
    learnt = [_shared_experts(material, half) for half in material.halves]
    inputs = _single_inputs(material)
    claims = tuple(_fires(material, name, mask, learnt) for name, mask in inputs.items())
    share = mean([float(np.concatenate(list(one.values())).mean()) for one in learnt])
    firing = [claim for claim in claims if claim.holds]
    if not any(flags.any() for half in learnt for flags in half.values()):
        answer = "No expert is above chance in two modalities: there are no cross-modal experts."
    elif not claims:
        answer = "The data do not tell: nothing was recorded of which all tokens are of one modality."
    elif firing:
        parts = ", ".join(f"{shown(one.value, '%')} of {one.name.removeprefix('activations of ')}" for one in firing)
        answer = (
            f"Yes: {shown(share, '%')} of the experts are above chance in at least two modalities, and they take "
            f"{parts}, in each half of the data those that the other half names."
        )
    else:
        answer = (
            f"It is not shown: the {shown(share, '%')} of the experts that are above chance in at least two modalities "
            "take no more of single-modality input than their number."
        )
    return Answer(
        key="cross_modal",
        question=question,
        answer=answer,
        claims=claims,
        notes=(
            "Cross-modal: above chance (q ≤ 0.05) in at least two modalities. Learnt from one half of the data, "
            "measured in the other; the figures of each half are of the experts that the other half names. "
            "Chance: their "
            "share of all experts. Inputs in which tokens of another modality stand beside (such as those around a "
            "picture) are said to be mixed.",
            *_left_out(material, "modality"),
        ),
    )


def _shared_experts(material: Material, half: Profile) -> dict[object, Flags]:
    """Bank → which experts are above chance in two modalities at least."""
    results = material.specialisations("modality", half)
    counts: dict[object, Flags] = {}
    for table in half.tables():
        flags = [one.q_chance <= ALPHA for banks in results.values() for one in banks if one.shape == table.shape]
        counts[table.shape.bank] = np.sum(flags, axis=0) >= 2 if flags else np.zeros(table.shape.experts, np.bool_)
    return counts


def _single_inputs(material: Material) -> dict[str, Flags]:
    """What it is → groups of one modality, of domains that have no other where there are such."""
    groups = material.profile.groups
    modalities = {group.domain: {g.modality for g in groups if g.domain == group.domain} for group in groups}
    found: dict[str, Flags] = {}
    for name in material.known("modality"):
        pure = np.array([group.modality == name and len(modalities[group.domain]) == 1 for group in groups])
        mixed = np.array([group.modality == name for group in groups])
        found[f"{name} alone" if pure.any() else f"{name} in mixed input"] = pure if pure.any() else mixed
    return found


def _fires(material: Material, name: str, mask: Flags, learnt: list[dict[object, Flags]]) -> Claim:
    def share(profile: Profile) -> float | None:
        """Of the activations, what goes to the experts that the other half names; mean over banks and halves."""
        parts = [_share_in(profile, mask, half, learnt[1 - half]) for half in range(2)]
        known = [part for part in parts if part is not None]
        return mean(known)

    sizes = [float(np.mean([flags.mean() for flags in half.values()])) for half in reversed(learnt)]
    tokens = max(int(table.tokens[table.rows(mask)].sum()) for table in material.profile.tables())
    return claim_above(
        f"activations of {name}",
        material.stretches.estimate(share, least=0, most=1),
        (float(np.mean(sizes)), *sizes),
        tokens=tokens,
        unit="%",
    )


def _share_in(profile: Profile, mask: Flags, half: int, chosen: dict[object, Flags]) -> float | None:
    shares = []
    for table in profile.tables():
        rows = table.rows(mask)
        rows = rows[table.segments[rows] // FOLDS == half]
        hits = table.activations[rows].sum(axis=0)
        if hits.sum():
            shares.append(float(hits[chosen[table.shape.bank]].sum() / hits.sum()))
    return mean(shares)
