"""How far apart modalities, or domains, are in each layer."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

from coterie.analysis.plots.canvas import LINES, new_figure, number_ticks, style
from coterie.analysis.plots.selection import bank_labels, component_tables, described
from coterie.profiles import Profile, Separation, separation
from coterie.profiles.separation import SeparatedBy
from coterie.spec import BankKey

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@style()
def separation_figure(
    profile: Profile, by: SeparatedBy = "modality", *, phase: str | None = None, component: str | None = None
) -> Figure:
    """Jensen–Shannon divergence of every two modalities (or domains) over the layers, each above its noise floor.

    Args:
        profile: Of the model.
        by: What to tell apart.
        phase: Only tokens of this phase.
        component: The part of the model, where there are several.

    Raises:
        UsageError: If the profile has one modality only, or for a name that is not known (says which are).
        MissingPackageError: If Matplotlib is not installed.
    """
    banks = [table.shape.bank for table in component_tables(profile, component)]
    found = separation(profile, by, phase=phase, component=component)
    figure = new_figure(f"Separation by {by}: {described(profile.model, phase)}", height=3.2)
    axes = figure.subplots()
    pairs = dict.fromkeys((one.first, one.second) for one in found.layers)
    for pair, (color, line, marker) in zip(pairs, cycle(LINES), strict=False):
        places, divergences, floors = _curve(found, pair, banks)
        name = f"{pair[0]} – {pair[1]}"
        axes.plot(places, divergences, color=color, linestyle=line, marker=marker, label=name)
        known = [(place, floor) for place, floor in zip(places, floors, strict=True) if floor is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True),
                color=color,
                linestyle="none",
                marker=marker,
                markerfacecolor="none",
                alpha=0.7,
                label=f"{name}: noise floor",
            )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel("Jensen–Shannon divergence (bits)")
    number_ticks(axes, "x", bank_labels(banks))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _curve(
    found: Separation, pair: tuple[str, str], banks: list[BankKey]
) -> tuple[list[int], list[float], list[float | None]]:
    layers = [one for one in found.layers if (one.first, one.second) == pair]
    places = [banks.index(BankKey(one.component, one.layer, one.bank)) for one in layers]
    return places, [one.divergence for one in layers], [one.floor for one in layers]
