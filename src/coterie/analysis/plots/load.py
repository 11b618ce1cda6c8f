"""How evenly the load is spread over the experts of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coterie.analysis.plots.canvas import EQUAL, LINES, SEQUENTIAL, new_figure, number_ticks, style
from coterie.analysis.plots.selection import bank_labels, component_tables, described
from coterie.profiles import Profile, expert_load
from coterie.profiles.load import TOP_SHARE
from coterie.spec import BankKey, optional_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LIGHTEST = 0.9
"""How far along its colours the last layer's curve is: yellow does not show on white."""


@style()
def load_figure(
    profile: Profile,
    *,
    domain: str | None = None,
    modality: str | None = None,
    phase: str | None = None,
    component: str | None = None,
) -> Figure:
    """Gini coefficient and the share of the busiest tenth of experts over the layers; Lorenz curves of all layers.

    Args:
        profile: Of the model.
        domain: Only tokens of this domain.
        modality: Only tokens of this modality.
        phase: Only tokens of this phase.
        component: The part of the model, where there are several.

    Raises:
        UsageError: For a name that is not known (says which are), or names that no token has together.
        MissingPackageError: If Matplotlib is not installed.
    """
    component_tables(profile, component)
    load = expert_load(profile, domain=domain, modality=modality, phase=phase, component=component)
    tokens = max(layer.tokens for layer in load.layers)
    figure = new_figure(f"Load: {described(profile.model, domain, modality, phase, tokens=tokens)}", height=3.2)
    left, right = figure.subplots(1, 2)
    places = list(range(len(load.layers)))
    series = (
        ([layer.gini for layer in load.layers], "Gini coefficient"),
        ([layer.top_share for layer in load.layers], f"load of the busiest {TOP_SHARE:.0%} of experts"),
    )
    for (values, label), (color, line, marker) in zip(series, LINES, strict=False):
        left.plot(places, values, color=color, linestyle=line, marker=marker, label=label)
    left.axhline(TOP_SHARE, color=EQUAL, linewidth=0.8, linestyle=":", label=f"{TOP_SHARE:.0%}: all experts alike")
    left.set_ylim(0, 1)
    left.set_xlabel("layer")
    left.set_ylabel("Gini (0: even); share of activations")
    number_ticks(left, "x", bank_labels([BankKey(one.component, one.layer, one.bank) for one in load.layers]))
    left.legend(loc="upper right")
    shades = optional_package("matplotlib", "Drawing needs", extra="analysis").colormaps[SEQUENTIAL](
        np.linspace(0, _LIGHTEST, len(load.layers))
    )
    for layer, shade in zip(load.layers, shades, strict=True):
        curve = layer.lorenz
        right.plot(np.linspace(0, 100, len(curve)), [100 * value for value in curve], color=shade, linewidth=0.9)
    right.plot([0, 100], [0, 100], color=EQUAL, linewidth=0.8, linestyle=":")
    right.set_xlabel("experts, the least busy first (%)")
    right.set_ylabel("their share of activations (%)")
    layers = [layer.layer for layer in load.layers]
    right.set_title(
        f"Lorenz curves, from layer {min(layers)} (dark) to {max(layers)} (light); dotted: all alike", fontsize=7.5
    )
    return figure
