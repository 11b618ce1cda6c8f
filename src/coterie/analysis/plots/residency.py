"""Which experts are in memory over the time of a generation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from coterie.analysis.matrices import Floats
from coterie.analysis.plots.canvas import LINES, Shading, draw_map, new_figure, number_ticks, style
from coterie.analysis.plots.selection import bank_labels
from coterie.errors import UsageError
from coterie.eviction import Timeline
from coterie.spec import BankKey

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_COLUMNS = 400
"""Steps are averaged to so many columns: a print has no more."""
_LEAST_WINDOW = 16


@style()
def residency_figure(timeline: Timeline, component: str | None = None) -> Figure:
    """Hit rate over the steps of a run, and how many experts of each layer are in memory.

    Args:
        timeline: From :func:`coterie.eviction.timeline`.
        component: Only the layers of this part of the model, in the map; the cache is one for all, and so is the hit
            rate.

    Raises:
        UsageError: For a component that is not there.
        MissingPackageError: If Matplotlib is not installed.
    """
    components = {layer.component for layer in timeline.layers}
    if component is not None and component not in components:
        raise UsageError.unknown("component", component, components)
    rows = [index for index, layer in enumerate(timeline.layers) if component in (None, layer.component)]
    banks = [BankKey(one.component, one.layer, one.bank) for one in (timeline.layers[index] for index in rows)]
    labels = bank_labels(banks)
    if len({bank.component for bank in banks}) > 1:
        labels = [f"{bank.component} {label}" for bank, label in zip(banks, labels, strict=True)]
    figure = new_figure(
        f"Residency: {timeline.model}, {timeline.capacity:,} of {timeline.experts:,} experts fit, {timeline.policy}",
        height=5.2,
    )
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    rates = np.array([step.hits / max(step.requests, 1) for step in timeline.steps])
    requests = np.array([step.requests for step in timeline.steps], dtype=np.float64)
    if len(rates) <= 2 * _MOST_COLUMNS:
        above.plot(100 * rates, color=LINES[3][0], linewidth=0.6, label="each step")
    window = min(max(_LEAST_WINDOW, len(rates) // 100), len(rates))
    above.plot(100 * running_mean(rates, requests, window), color=LINES[0][0], label=f"last {window} steps")
    above.axhline(
        100 * timeline.hit_rate, color=LINES[2][0], linewidth=1.0, linestyle=":", label=f"all: {timeline.hit_rate:.1%}"
    )
    above.set_ylim(0, 100)
    above.set_ylabel("hit rate (%)")
    above.legend(loc="lower right", ncols=3)
    resident = np.array([[step.resident[index] for step in timeline.steps] for index in rows], dtype=np.float64)
    shown = averaged(resident, _MOST_COLUMNS)
    image = draw_map(below, shown, Shading.from_zero(shown))
    image.set_extent((-0.5, len(rates) - 0.5, len(rows) - 0.5, -0.5))
    number_ticks(below, "y", labels)
    below.locator_params(axis="x", integer=True)
    below.set_xlabel("step of the run, from an empty cache")
    below.set_ylabel("layer")
    figure.colorbar(image, ax=below, label="experts in memory")
    return figure


def running_mean(values: Floats, weights: Floats, window: int) -> Floats:
    """Weighted mean of the last so many values at each place, of fewer at the beginning."""
    sums, totals = (np.concatenate([[0.0], np.cumsum(one)]) for one in (values * weights, weights))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    weight = totals[ends] - totals[starts]
    means: Floats = np.divide(sums[ends] - sums[starts], weight, out=np.zeros_like(weight), where=weight > 0)
    return means


def averaged(table: Floats, columns: int) -> Floats:
    """Means of neighbouring columns [rows, S], so that at most so many are left."""
    if table.shape[1] <= columns:
        return table
    starts = np.unique(np.linspace(0, table.shape[1], columns, endpoint=False).astype(np.intp))
    sizes = np.diff([*starts.tolist(), table.shape[1]])
    means: Floats = np.add.reduceat(table, starts, axis=1) / sizes
    return means
