"""How evenly a layer's load is spread over its experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coterie.errors import UsageError
from coterie.profiles.inference import Floats
from coterie.profiles.profile import Profile

LOAD_SCHEMA_VERSION = 1
TOP_SHARE = 0.1
"""The part of the experts whose load :attr:`LayerLoad.top_share` is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoad:
    """The load of one bank.

    Attributes:
        component: Part of the model.
        layer: The layer.
        bank: The bank.
        tokens: Tokens that passed the router.
        gini: Gini coefficient of the activations: 0 if all experts have as many, 1 − 1/E if one has all.
        top_share: Share of the activations that the 10 % of the experts with the most have; 0.1 if all have as many.
        unused: Experts that were never selected.
        shares: Each expert's share of the activations, the least first.
    """

    component: str
    layer: int
    bank: str
    tokens: int
    gini: float
    top_share: float
    unused: int
    shares: tuple[float, ...]

    @property
    def lorenz(self) -> tuple[float, ...]:
        """Lorenz curve: share of the activations that the 0, 1, …, E experts with the fewest have together."""
        return tuple(lorenz_curve(np.array(self.shares)).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load of all layers.

    Attributes:
        schema_version: Version of this form.
        model: Name of the model.
        identity: Its fingerprint.
        domain: The domain, or None for all.
        modality: The modality, or None for all.
        phase: ``prompt`` or ``generated``, or None for both.
        layers: In order of component, layer and bank.
    """

    schema_version: int = LOAD_SCHEMA_VERSION
    model: str
    identity: str
    domain: str | None
    modality: str | None
    phase: str | None
    layers: tuple[LayerLoad, ...]


def expert_load(
    profile: Profile,
    *,
    domain: str | None = None,
    modality: str | None = None,
    phase: str | None = None,
    component: str | None = None,
) -> Load:
    """Says how evenly activations are spread over the experts of each layer.

    Args:
        profile: Of the model.
        domain: Only tokens of this domain.
        modality: Only tokens of this modality.
        phase: Only tokens of this phase.
        component: Only this part of the model.

    Raises:
        UsageError: For a name that is not known (says which are), or names that no token has together.
    """
    selected = profile.where(domain=domain, modality=modality, phase=phase)
    layers = []
    for table in profile.tables(component):
        rows = table.rows(selected)
        counts = table.activations[rows].sum(axis=0).astype(np.float64)
        if counts.sum() > 0:
            shares = np.sort(counts / counts.sum())
            layers.append(
                LayerLoad(
                    **table.shape.bank._asdict(),
                    tokens=int(table.tokens[rows].sum()),
                    gini=gini(counts),
                    top_share=top_share(counts, TOP_SHARE),
                    unused=int((counts == 0).sum()),
                    shares=tuple(shares.tolist()),
                )
            )
    if not layers:
        raise UsageError("No token of the profile is of all of these: domain, modality and phase.")
    return Load(
        model=profile.model,
        identity=profile.identity,
        domain=domain,
        modality=modality,
        phase=phase,
        layers=tuple(layers),
    )


def gini(values: Floats) -> float:
    """Gini coefficient of values that are not negative: Σᵢ (2i − E − 1) x₍ᵢ₎ / (E Σ x), x in ascending order.

    Half of the mean difference between two values, as a share of the mean (Gini 1912; in this form in Dixon and others,
    "Bootstrapping the Gini coefficient of inequality", Ecology 68, 1987). 0 if all are zero.
    """
    count, total = len(values), float(values.sum())
    if not total > 0:
        return 0.0
    weights = 2.0 * np.arange(1, count + 1) - count - 1
    return float((weights * np.sort(values)).sum() / (count * total))


def lorenz_curve(values: Floats) -> Floats:
    """[E + 1] share of the total that the 0, 1, …, E smallest values have together (Lorenz 1905)."""
    sums = np.concatenate([[0.0], np.cumsum(np.sort(values))])
    curve: Floats = sums / sums[-1] if sums[-1] > 0 else np.linspace(0.0, 1.0, len(sums))
    return curve


def top_share(values: Floats, part: float) -> float:
    """Share of the total that the largest values have, so large a part of their number: 1 − L(1 − part).

    L is the Lorenz curve, straight between its points, so that 10 % of 32 experts is 3.2 experts.
    """
    curve = lorenz_curve(values)
    return float(1 - np.interp(1 - part, np.linspace(0.0, 1.0, len(curve)), curve))
