"""Does the router see modality, or token patterns?"""

from __future__ import annotations

import numpy as np

from coterie.analysis.geometry import RouterAnalysis
from coterie.analysis.report.findings import Answer, Claim, Table, claim_counted, claim_whole, shown
from coterie.analysis.report.material import Material
from coterie.analysis.report.words import Words
from coterie.profiles.heavy_tokens import heavy_tokens
from coterie.profiles.inference import ALPHA


def routing(material: Material, words: Words, analysis: RouterAnalysis | str) -> Answer:
    """Clusters of router rows beside the profile's groups; favourite tokens of experts beside favourite domains.

    Args:
        material: Of the profile.
        words: Counts of tokens.
        analysis: Of the routers, or why there is none.
    """
    claims: list[Claim] = []
    tables: tuple[Table, ...] = ()
    if isinstance(analysis, str):
        geometry = f"the routers' geometry cannot be examined ({analysis})"
        seen = False
    else:
        clustered = sum(layer.clustered for layer in analysis.layers)
        layers = max(1, len(analysis.layers))
        claims.append(
            claim_whole("share of layers whose router rows form clusters", clustered / layers, tokens=0, unit="%")
        )
        for grouping in ("modality", "domain"):
            found = [one for one in analysis.agreements if one.grouping == grouping]
            if found:
                agreeing = sum(one.agrees for one in found) / len(found)
                name = f"share of layers whose clusters are the experts of one {grouping} each"
                claims.append(claim_counted(name, agreeing, tokens=material.tokens_of(grouping), unit="%"))
        geometry = analysis.answer[0].lower() + analysis.answer[1:].rstrip(".")
        geometry += _nearby(analysis)
        seen = any(one.agrees for one in analysis.agreements)
        tables = (_by_layer(analysis),)
    favourites = _favourites(material, words)
    told = "the profile keeps no counts of tokens"
    verdict = "The data do not tell"
    if favourites is not None:
        token, domain, chance = favourites
        claims += [
            claim_whole(
                "favourite token of an expert, share that selects it",
                token,
                tokens=material.tokens,
                unit="%",
                chance=chance,
            ),
            claim_whole(
                "favourite domain of an expert, share that selects it",
                domain,
                tokens=material.tokens,
                unit="%",
                chance=chance,
            ),
        ]
        told = (
            f"half of the experts are selected by at least {shown(token, '%')} of the occurrences of their "
            f"favourite token, "
            f"and by at least {shown(domain, '%')} of the tokens of their favourite domain (chance "
            f"{shown(chance, '%')})"
        )
        verdict = "Tokens rather than domains" if token > 2 * domain else "Domains as much as tokens"
        if seen:
            verdict = "Both" if token > 2 * domain else "Modality or domain"
    elif seen:
        verdict = "Modality or domain"
    return Answer(
        key="router",
        question="Does the router see modality or token patterns?",
        answer=f"{verdict}: {told}; {geometry}.",
        claims=tuple(claims),
        tables=tables,
        notes=(
            "Favourite: the lower end of the 95 % interval, median over experts. Counts of tokens are kept by "
            "run, not by "
            "segment, so they cannot be halved. Clusters agree with a grouping if they are more than chance, if their "
            "adjusted Rand index is above that of shuffled groups (q ≤ 0.05), and if it is so in each half of "
            "the data.",
        ),
    )


def _nearby(analysis: RouterAnalysis) -> str:
    """Where rows form no clusters, and those that were cut out still serve one group more than shuffled ones do."""
    parts = []
    for grouping in ("modality", "domain"):
        found = [one for one in analysis.agreements if one.grouping == grouping]
        near = [one for one in found if not one.agrees and one.replicated and (one.q_value or 0) <= ALPHA]
        if near:
            span = f"{min(one.rand_index for one in near):.2f} to {max(one.rand_index for one in near):.2f}"
            parts.append(
                f"; without being clusters, rows that lie near each other serve the same {grouping} more often than "
                f"shuffled ones in {len(near)} of {len(found)} layers, in both halves of the data (adjusted "
                f"Rand index {span})"
            )
    return "".join(parts)


def _by_layer(analysis: RouterAnalysis) -> Table:
    groupings = list(dict.fromkeys(one.grouping for one in analysis.agreements))
    agreements = {(one.layer, one.bank, one.grouping): one for one in analysis.agreements}
    rows = []
    for layer in analysis.layers:
        cells = [
            str(layer.layer) if layer.bank == "mlp" else f"{layer.layer} {layer.bank}",
            str(layer.clusters) if layer.clustered else f"({layer.clusters})",
            shown(layer.silhouette),
            shown(layer.random_silhouette),
        ]
        for grouping in groupings:
            one = agreements.get((layer.layer, layer.bank, grouping))
            cells += (
                ["–"] * 3
                if one is None
                else [f"{one.rand_index:.2f}", shown(one.q_value), "yes" if one.replicated else "no"]
            )
        rows.append(tuple(cells))
    headings = [f"{grouping} {name}" for grouping in groupings for name in ("ARI", "q", "in both halves")]
    return Table(
        title="Router rows: clusters (in brackets: no more than chance), and their agreement with the profile",
        columns=("layer", "clusters", "silhouette", "chance", *headings),
        rows=tuple(rows),
    )


def _favourites(material: Material, words: Words) -> tuple[float, float, float] | None:
    """Medians over experts of the lower ends for the favourite token and the favourite domain; mean chance."""
    results = material.specialisations("domain")
    best: list[float] = []
    domains: list[float] = []
    chances: list[float] = []
    for table in material.profile.tables():
        found = words.of(table.shape.bank)
        of_bank = [one for banks in results.values() for one in banks if one.shape == table.shape]
        if found is None or not of_bank:
            continue
        experts = range(table.shape.experts)
        lows = np.nanmax(np.stack([one.intervals(list(experts))[0] for one in of_bank]), axis=0)
        for expert in experts:
            tokens = heavy_tokens(found, expert, 0.0, limit=1)
            if tokens:
                best.append(tokens[0].low)
                domains.append(float(lows[expert]))
        chances.append(table.shape.top_k / table.shape.experts)
    if not best:
        return None
    return float(np.median(best)), float(np.nanmedian(domains)), float(np.mean(chances))
