"""How specialisation and load are spread: over depth, over experts, over the experts of one token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from coterie.analysis.plots.selection import bank_labels
from coterie.analysis.report.findings import (
    Answer,
    Claim,
    Picture,
    Table,
    claim_above,
    claim_counted,
    claim_described,
    shown,
)
from coterie.analysis.report.material import PLURALS, Flags, Material, divergences, mean
from coterie.analysis.report.trial import Trial
from coterie.profiles import BankTable, Profile, expert_kinds, expert_load, gini, jensen_shannon, top_share
from coterie.profiles.halves import FOLDS
from coterie.profiles.load import TOP_SHARE
from coterie.profiles.separation import SeparatedBy
from coterie.spec import BankKey

_LEAST_LAYERS = 3
_STEADY = 0.7
"""Rank correlation of layers' divergences with depth from which on they are said to grow or fall with it."""
_LISTED = 12


def depth(material: Material) -> Answer:
    """Whether layers differ in how far apart they hold domains, or modalities."""
    question = "Is specialisation uniform over depth?"
    by: SeparatedBy = "domain" if len(material.known("domain")) >= 2 else "modality"
    banks = len(material.profile.banks)
    if len(material.known(by)) < 2 or banks < _LEAST_LAYERS:
        few = f"the model has {banks} layers of experts" if banks < _LEAST_LAYERS else "there are no two groups"
        return Answer(key="depth", question=question, answer=f"The data do not tell: {few}.")
    masks = material.masks(by)
    tokens = material.tokens_of(by)
    found, chance = material.apart(by)
    apart = claim_above(f"mean divergence of two {PLURALS[by]}", found, chance, tokens=tokens, unit="bits")
    if not apart.holds:
        # Noise differs between layers, too: how evenly they choose is enough for that.
        answer = "Nothing is shown: divergences are not above noise in the whole and in both halves."
        return Answer(key="depth", question=question, answer=answer, claims=(apart,))
    trend = material.stretches.estimate(lambda part: _late_less_early(part, masks))
    uneven = material.stretches.estimate(lambda part: _alikeness(part, masks), least=-1, most=1)
    claims = (
        claim_above(
            f"divergence of {by}s, last third of layers less first third",
            trend,
            (0.0, 0.0, 0.0),
            tokens=tokens,
            unit="bits",
            two_sided=True,
        ),
        claim_above(
            "correlation of layers' divergences, odd stretches with even ones", uneven, (0.0, 0.0, 0.0), tokens=tokens
        ),
    )
    layers = divergences(material.stretches.profile, masks)
    values = [one for one in layers if one is not None]
    span = f"layers lie between {shown(min(values))} and {shown(max(values), 'bits')}"
    if claims[0].holds:
        answer = f"No: {_over_depth(values, trend.value or 0.0)}; {span}."
    elif claims[1].holds:
        answer = (
            f"No, though it neither grows nor falls with depth for sure: {span}, and the same ones stand out in "
            f"other parts of the data (correlation {shown(uneven.value)})."
        )
    elif trend.low is None:
        answer = "The data do not tell: there are too few segments."
    else:
        answer = f"A difference between layers is not shown: in divergence by {by}, {span}."
    return Answer(
        key="depth",
        question=question,
        answer=answer,
        claims=claims,
        pictures=(Picture(name="depth", title="Divergence over depth"),),
    )


def _over_depth(values: list[float], trend: float) -> str:
    """How divergence goes with depth; it grows or falls only if most layers follow."""
    size = shown(abs(trend), "bits")
    way, more = ("grows", "more") if trend > 0 else ("falls", "less")
    order = np.argsort(np.argsort(values))
    followed = float(np.corrcoef(order, np.arange(len(values)))[0, 1]) * (1 if trend > 0 else -1)
    if followed >= _STEADY:
        return f"it {way} with depth, by {size} from the first third of layers to the last"
    return (
        f"the last third of layers has {size} {more} than the first third on average, but it goes up and down from "
        "layer to layer"
    )


def _layer_values(profile: Profile, masks: dict[str, Flags]) -> list[float] | None:
    found = [one for one in divergences(profile, masks) if one is not None]
    return found if len(found) == len(profile.banks) >= _LEAST_LAYERS else None


def _late_less_early(profile: Profile, masks: dict[str, Flags]) -> float | None:
    values = _layer_values(profile, masks)
    if values is None:
        return None
    third = max(1, len(values) // 3)
    return float(np.mean(values[-third:]) - np.mean(values[:third]))


def _alikeness(profile: Profile, masks: dict[str, Flags]) -> float | None:
    """Correlation over layers between divergences in odd stretches and in even ones."""
    sides = []
    for side in range(2):
        found = [_divergence(table, masks, table.segments % 2 == side) for table in profile.tables()]
        sides.append([value for value in found if value is not None])
    one, two = (np.array(side) for side in sides)
    if len(one) != len(two) or len(one) < _LEAST_LAYERS or one.std() == 0 or two.std() == 0:
        return None
    return float(np.corrcoef(one, two)[0, 1])


def _divergence(table: BankTable, masks: dict[str, Flags], wanted: Flags) -> float | None:
    sums = [table.activations[wanted & mask[table.groups]].sum(axis=0).astype(np.float64) for mask in masks.values()]
    pairs = combinations([one for one in sums if one.sum() > 0], 2)
    return mean([jensen_shannon(*pair) for pair in pairs])


def universal(material: Material) -> Answer:
    """Which experts are above chance in every domain."""
    question = "Which experts are universal?"
    domains = material.known("domain")
    if len(domains) < 2:
        return Answer(
            key="universal",
            question=question,
            answer="The data do not tell: fewer than two domains have enough segments.",
        )
    kinds = expert_kinds(material.profile)
    found = [one for one in kinds.experts if one.kind == "universal"]
    tokens, total = min(kinds.tokens.values()), len(kinds.experts)
    counts = kinds.counts
    shares = {
        "universal": counts["universal"] / total,
        "specialists of some domain, and not universal": counts["specialist"] / total,
    }
    claims = tuple(
        claim_counted(f"share of experts that are {name}", share, tokens=tokens, unit="%")
        for name, share in shares.items()
    )
    found.sort(key=lambda one: (-one.effective_domains, one.layer, one.expert_id))
    listed = ", ".join(f"{one.layer}:{one.expert_id}" for one in found[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    answer = (
        f"{len(found)} of {total:,} experts are above chance in each of {len(kinds.tokens)} domains, in both halves of "
        f"the data: {listed}{more}."
        if found
        else f"None of {total:,} experts is above chance in all {len(kinds.tokens)} domains in both halves of the data."
    )
    rows = tuple(
        (
            f"{one.layer}:{one.expert_id}",
            f"{one.effective_domains:.2f}",
            *(f"{100 * s:.1f} %" for s in one.shares.values()),
        )
        for one in found[:_LISTED]
    )
    table = Table(
        title="Universal experts (LAYER:EXPERT), the most even first: share of each domain's tokens",
        columns=("expert", "effective domains", *kinds.tokens),
        rows=rows,
    )
    return Answer(
        key="universal",
        question=question,
        answer=answer,
        claims=claims,
        tables=(table,) if rows else (),
        pictures=(Picture(name="activation", title="Share of tokens that select each expert"),),
    )


def load(material: Material) -> Answer:
    """How much of the load the busiest tenth of the experts carries."""
    stretches = material.stretches
    top = stretches.estimate(lambda part: _mean_over(part, lambda hits: top_share(hits, TOP_SHARE)), least=0, most=1)
    uneven = stretches.estimate(lambda part: _mean_over(part, gini), least=0, most=1)
    halves = stretches.halves
    busiest = [{table.shape.bank: _busiest(table) for table in half.tables()} for half in halves]
    kept = stretches.estimate(lambda part: _kept(part, busiest), least=0, most=1)
    even = (TOP_SHARE,) * 3
    tokens = material.tokens
    claims = (
        claim_above("share of activations of the busiest tenth", top, even, tokens=tokens, unit="%"),
        claim_described("Gini coefficient", uneven, tokens=tokens),
        claim_above(
            "share of activations of the busiest tenth of the other half", kept, _sizes(halves), tokens=tokens, unit="%"
        ),
    )
    if top.value is None:
        answer = "The data do not tell."
    else:
        holds = "holds" if claims[2].holds else "does not hold"
        answer = (
            f"The busiest 10 % of a layer's experts carry {shown(top.value, '%')} of its load (Gini "
            f"{shown(uneven.value)}), "
            f"and it {holds} that they are the same experts in the other half of the data, where they carry "
            f"{shown(kept.value, '%')}."
        )
    layers = expert_load(material.profile).layers
    labels = bank_labels([table.shape.bank for table in material.profile.tables()])
    table = Table(
        title="By layer",
        columns=("layer", "busiest tenth", "Gini", "never selected"),
        rows=tuple(
            (label, shown(one.top_share, "%"), f"{one.gini:.3f}", str(one.unused))
            for label, one in zip(labels, layers, strict=True)
        ),
    )
    return Answer(
        key="load",
        question="How much of the load do the top 10 % of the experts carry?",
        answer=answer,
        claims=claims,
        tables=(table,),
        pictures=(Picture(name="load", title="Load of each layer's experts"),),
    )


def _mean_over(profile: Profile, figure: Callable[[np.ndarray], float]) -> float | None:
    return mean([figure(table.activations.sum(axis=0).astype(np.float64)) for table in profile.tables()])


def _busiest(table: BankTable) -> Flags:
    """A tenth of the experts, at least one."""
    hits = table.activations.sum(axis=0)
    number = max(1, round(TOP_SHARE * len(hits)))
    flags = np.zeros(len(hits), np.bool_)
    flags[np.argsort(-hits, kind="stable")[:number]] = True
    return flags


def _sizes(halves: tuple[Profile, Profile]) -> tuple[float | None, float | None, float | None]:
    size = mean([float(_busiest(table).mean()) for half in halves for table in half.tables()])
    return size, size, size


def _kept(profile: Profile, busiest: Sequence[Mapping[BankKey, Flags]]) -> float | None:
    shares = []
    for table in profile.tables():
        for half in range(2):
            hits = table.activations[table.segments // FOLDS == half].sum(axis=0)
            chosen = busiest[1 - half].get(table.shape.bank)
            if hits.sum() and chosen is not None:
                shares.append(float(hits[chosen].sum() / hits.sum()))
    return mean(shares)


def dominance(material: Material, trial: Trial | None) -> Answer:
    """Whether one of a token's experts has most of the weight, and of the output."""
    tables = list(material.profile.tables())
    k = float(np.mean([table.shape.top_k for table in tables]))
    tokens = material.tokens
    effective = material.stretches.estimate(_effective_experts, least=1, most=k)
    least = material.stretches.estimate(_least_share, least=0, most=1)
    claims: list[Claim] = [
        claim_described(f"effective experts per token, of {k:g} selected", effective, tokens=tokens, unit="experts"),
        claim_described("share of the gate of the first expert, at least", least, tokens=tokens, unit="%"),
    ]
    parts = [f"a token's {k:g} experts weigh as much as {shown(effective.value, 'experts')} of equal weight"]
    if trial is None:
        parts.append(f"the first has {shown(least.value, '%')} of the gate at least, on average")
    verdict = None
    if effective.value is None or not effective.value or k <= 1:
        verdict = "The data do not tell" if k > 1 else "There is one expert per token"
    elif least.low is not None and least.low > 0.5:
        verdict = "Yes"
    elif effective.value > k / 2 and trial is None:
        verdict = "Hardly" if k > 2 else None
    if trial is not None:
        gate, output = trial.gate, trial.output
        claims.append(claim_described("share of the gate of the first expert", gate, tokens=trial.tokens, unit="%"))
        parts.append(
            f"the first has {shown(gate.value, '%')} of the gate (a tenth of the tokens below "
            f"{shown(trial.gate_low, '%')}, a tenth above {shown(trial.gate_high, '%')})"
        )
        if output.value is not None:
            claims.append(
                claim_described(
                    "share of the largest contribution in the sum of norms", output, tokens=trial.tokens, unit="%"
                )
            )
            parts.append(f"the largest contribution {shown(output.value, '%')} of the sum of output norms")
        if gate.value is not None and verdict != "There is one expert per token":
            verdict = "Yes" if gate.value > 0.5 else "No"
    return Answer(
        key="dominance",
        question="Is one expert dominant per token?",
        answer=f"{verdict or 'The data do not tell for sure'}: {', '.join(parts)}.",
        claims=tuple(claims),
        notes=(
            "Effective experts: exp of the mean entropy of a token's gate weights scaled to 1. The first "
            "expert's share is "
            "at least exp of minus that. A profile keeps no weights of single tokens: their distribution, and "
            "norms, are "
            "of a short run of the model" + ("." if trial is not None else ", which takes a text (`--text`)."),
        ),
    )


def _mean_entropy(profile: Profile) -> float | None:
    return mean([float(table.entropy_sum.sum() / table.tokens.sum()) for table in profile.tables()])


def _effective_experts(profile: Profile) -> float | None:
    entropy = _mean_entropy(profile)
    return None if entropy is None else float(np.exp(entropy))


def _least_share(profile: Profile) -> float | None:
    entropy = _mean_entropy(profile)
    return None if entropy is None else float(np.exp(-entropy))
