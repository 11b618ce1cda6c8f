"""Which experts of one layer are chosen together, as a map whose order puts companions side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from coterie.analysis.clusters import Labels
from coterie.analysis.matrices import Floats
from coterie.analysis.plots.canvas import Shading, draw_map, new_figure, number_ticks, style
from coterie.analysis.plots.selection import described, layer_table
from coterie.errors import UsageError
from coterie.profiles import Profile, ProfileDatabase
from coterie.profiles.companions import lifts, pair_counts, pair_matrix
from coterie.spec import optional_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Coactivation = Literal["lift", "share"]
"""Lift, N_ij·N / (N_i·N_j), or the share of i's tokens that select j as well, N_ij / N_i."""

_MOST_DOUBLINGS = 3.0


@style()
def coactivation_figure(
    profile: Profile,
    database: ProfileDatabase,
    layer: int,
    *,
    measure: Coactivation = "lift",
    component: str | None = None,
    bank: str | None = None,
) -> Figure:
    """A map of the pairs of a layer's experts, of all tokens of a profile.

    Args:
        profile: Of the model.
        database: Where it was read from.
        layer: Which layer.
        measure: ``"lift"`` or ``"share"``.
        component: The part of the model, where there are several.
        bank: The bank, where the layer has several.

    Raises:
        UsageError: For a layer, component or bank that is not there, or if pairs were not counted.
        MissingPackageError: If Matplotlib or SciPy is not installed.
    """
    table = layer_table(profile, layer, component, bank)
    experts = table.shape.experts
    total = np.zeros(experts * (experts - 1) // 2, np.int64)
    for _, pairs in pair_counts(profile, database, table.shape.bank):
        if len(pairs):
            total += pairs
    if not total.any():
        raise UsageError(
            f"No pairs of experts were counted in layer {layer}.",
            advice="Record with pairs; a model that chooses one expert per token has none.",
        )
    together = pair_matrix(total, experts)
    lift = lifts(table, together)
    order = companions_first(lift)
    figure = new_figure(f"Co-activation, layer {layer}: {described(profile.model)}", height=6.2)
    axes = figure.subplots()
    if measure == "lift":
        with np.errstate(divide="ignore"):
            values = np.clip(np.log2(lift), -_MOST_DOUBLINGS, _MOST_DOUBLINGS)
        label = "log₂ lift (0: as often as their frequencies say)"
    else:
        chosen = table.activations.sum(axis=0).astype(np.float64)[:, None]
        values = 100 * np.divide(together, chosen, out=np.zeros(together.shape), where=chosen > 0)
        label = "of the row's tokens, share that select the column's expert as well (%)"
    np.fill_diagonal(values, np.nan)
    shading = Shading.around_zero(values) if measure == "lift" else Shading.from_zero(values)
    image = draw_map(axes, values[np.ix_(order, order)], shading, aspect="equal")
    names = [str(expert) for expert in order.tolist()]
    number_ticks(axes, "x", names)
    number_ticks(axes, "y", names)
    axes.set_xlabel("expert, companions side by side")
    axes.set_ylabel("expert, in the same order")
    figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    return figure


def companions_first(lift: Floats) -> Labels:
    """An order of experts in which those with a high lift are neighbours: the leaves of a tree of average linkage.

    Distances are 1 / (1 + lift); of the orders that the tree allows, the one with the shortest way (Bar-Joseph and
    others, "Fast optimal leaf ordering for hierarchical clustering", Bioinformatics 17, 2001).

    Raises:
        MissingPackageError: If SciPy is not installed.
    """
    if len(lift) < 3:
        return np.arange(len(lift))
    hierarchy = optional_package("scipy.cluster.hierarchy", "Ordering experts needs", extra="analysis")
    distances = 1 / (1 + lift[np.triu_indices(len(lift), 1)])
    tree = hierarchy.linkage(distances, "average", optimal_ordering=True)
    found: Labels = hierarchy.leaves_list(tree).astype(np.intp)
    return found
