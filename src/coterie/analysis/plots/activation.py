"""Which experts of which layers are chosen, as a map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coterie.analysis.matrices import Floats
from coterie.analysis.plots.canvas import WIDTH, Shading, draw_map, new_figure, number_ticks, style
from coterie.analysis.plots.selection import bank_labels, component_tables, described
from coterie.errors import UsageError
from coterie.profiles import BankTable, Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style()
def activation_figure(
    profile: Profile,
    *,
    domain: str | None = None,
    modality: str | None = None,
    phase: str | None = None,
    component: str | None = None,
    against: str | None = None,
) -> Figure:
    """A map of layers × experts: the share of tokens that select each expert, or the difference of two such shares.

    Args:
        profile: Of the model.
        domain: Only tokens of this domain.
        modality: Only tokens of this modality.
        phase: Only tokens of this phase.
        component: The part of the model, where there are several.
        against: Another domain, or another modality if only a modality is given, whose shares are subtracted.

    Raises:
        UsageError: For a name that is not known (says which are), names that no token has together, or ``against``
            without anything to compare.
        MissingPackageError: If Matplotlib is not installed.
    """
    tables = component_tables(profile, component)
    first, tokens = _shares(profile, tables, domain, modality, phase)
    shown = described(profile.model, domain, modality, phase, tokens=tokens)
    if against is None:
        title = f"Activation: {shown}"
        label = "share of tokens that select the expert (%)"
        values, shading = first, Shading.from_zero(first)
    else:
        if domain is None and modality is None:
            raise UsageError(
                f"There is nothing to compare with {against!r}.", advice="Give a domain or a modality.", got=against
            )
        other_domain, other_modality = (against, modality) if domain is not None else (None, against)
        second, others = _shares(profile, tables, other_domain, other_modality, phase)
        title = f"Activation: {shown} − {against}, {others:,} tokens"
        label = f"{domain or modality} − {against} (percentage points)"
        values = first - second
        shading = Shading.around_zero(values)
    labels = bank_labels([table.shape.bank for table in tables])
    figure = new_figure(title, height=1.4 + min(max(WIDTH * 0.8 * len(tables) / values.shape[1], 1.2), 7.0))
    axes = figure.subplots()
    image = draw_map(axes, values, shading)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    number_ticks(axes, "x", [str(expert) for expert in range(values.shape[1])])
    number_ticks(axes, "y", labels)
    bar = figure.colorbar(image, ax=axes, label=label)
    chance = {100 * table.shape.top_k / table.shape.experts for table in tables}
    if against is None and len(chance) == 1:
        bar.ax.axhline(min(chance), color="white", linewidth=1.0)
        axes.set_title("white line in the scale: chance level k/E", fontsize=7.5)
    return figure


def _shares(
    profile: Profile, tables: list[BankTable], domain: str | None, modality: str | None, phase: str | None
) -> tuple[Floats, int]:
    """Shares in percent [layers, most experts], NaN where a layer has no such expert or no such token; tokens."""
    selected = profile.where(domain=domain, modality=modality, phase=phase)
    shares = np.full((len(tables), max(table.shape.experts for table in tables)), np.nan)
    tokens = 0
    for index, table in enumerate(tables):
        rows = table.rows(selected)
        if len(rows):
            passed = int(table.tokens[rows].sum())
            shares[index, : table.shape.experts] = 100 * table.activations[rows].sum(axis=0) / passed
            tokens = max(tokens, passed)
    if not tokens:
        asked = ", ".join(name for name in (domain, modality, phase) if name is not None)
        raise UsageError(f"No token of the profile is all of these: {asked}.", got=asked)
    return shares, tokens
