"""A picture of a curve: a panel for each axis, and one for the smallest sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from coterie.analysis.plots.canvas import LINES, new_figure, style
from coterie.curves.points import Curve, CurvePoint
from coterie.curves.settings import AXES, Axis
from coterie.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = 2.6
"""Inches."""
_STYLES = {"mask": ("-", "o"), "drop": ("--", "s"), "nearest": (":", "^")}


@style()
def curve_figure(curve: Curve) -> Figure:
    """Divergence against what is saved, one panel for each axis, with 95 % intervals; the smallest sets as bars.

    Divergence is on a logarithmic scale, where points without any have no place.

    Args:
        curve: From :func:`curve`.

    Raises:
        UsageError: If it has nothing to draw.
        MissingPackageError: If Matplotlib is not installed.
    """
    panels: list[Callable[[Axes], None]] = []
    for axis in AXES:
        points = [point for point in curve.points if point.setting.axis == axis and point.kld.value > 0]
        if points:
            panels.append(lambda axes, axis=axis, points=points: _DRAWN[axis](axes, points))  # type: ignore[misc]
    if curve.smallest:
        panels.append(lambda axes: _draw_smallest(axes, curve))
    if not panels:
        raise UsageError("The curve has no point that differs from the full model: there is nothing to draw.")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(f"{curve.model.name}, against {curve.against.name}", _PANEL * rows + 0.3)
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, draw in zip(places, panels, strict=False):
        draw(axes)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    return figure


def _draw_coverage(axes: Axes, points: Sequence[CurvePoint]) -> None:
    ways = list(dict.fromkeys((point.setting.chosen_by, point.setting.missing) for point in points))
    names = list(dict.fromkeys(name for name, _ in ways))
    for name, missing in ways:
        line = sorted(
            (p for p in points if (p.setting.chosen_by, p.setting.missing) == (name, missing)), key=lambda p: p.experts
        )
        pattern, marker = _STYLES.get(str(missing), ("-", "o"))
        number = names.index(name)
        places = [100 * point.experts / point.total_experts for point in line]
        _draw_line(axes, places, line, f"{name}, {missing}", LINES[number % len(LINES)][0], pattern, marker)
    axes.set_xlabel("experts that are there, %")
    axes.legend(ncols=2)


def _draw_experts_per_token(axes: Axes, points: Sequence[CurvePoint]) -> None:
    line = sorted(points, key=lambda point: point.setting.experts_per_token or 0)
    places = [float(point.setting.experts_per_token or 0) for point in line]
    _draw_line(axes, places, line, None, *LINES[0])
    axes.set_xticks(places)
    axes.set_xlabel("experts per token")


def _draw_bits(axes: Axes, points: Sequence[CurvePoint]) -> None:
    line = sorted(points, key=lambda point: point.bits)
    schemes = [point for point in line if point.setting.scheme is not None]
    others = [point for point in line if point.setting.scheme is None]
    _draw_line(axes, [point.bits for point in schemes], schemes, None, *LINES[0])
    _draw_line(axes, [point.bits for point in others], others, None, LINES[1][0], "none", LINES[1][2])
    for point in line:
        _name(axes, point.bits, point, point.setting.label.rpartition("/")[2])
    axes.set_xlabel("bits per weight of experts")


def _draw_reads(axes: Axes, points: Sequence[CurvePoint]) -> None:
    known = [point for point in points if point.reads is not None]
    line = sorted(known, key=lambda point: point.reads.bytes_per_token if point.reads is not None else 0.0)
    places = [point.reads.bytes_per_token / 2**20 for point in line if point.reads is not None]
    _draw_line(axes, places, line, None, *LINES[0])
    for place, point in zip(places, line, strict=True):
        _name(axes, place, point, f"{point.setting.drop_cold:g}")
    axes.set_xlabel("MiB read per token, by drop-cold")


def _draw_smallest(axes: Axes, curve: Curve) -> None:
    kinds = list(dict.fromkeys((one.bound, one.by) for one in curve.smallest))
    domains = list(dict.fromkeys(one.domain for one in curve.smallest))
    several = len({by for _, by in kinds}) > 1
    width = 0.8 / len(kinds)
    for number, (bound, by) in enumerate(kinds):
        found = {one.domain: one for one in curve.smallest if (one.bound, one.by) == (bound, by)}
        places = [index - 0.4 + width * (number + 0.5) for index in range(len(domains))]
        heights = [100 * found[name].experts / found[name].total_experts for name in domains]
        label = f"KLD ≤ {bound:g}, {by}" if several else f"KLD ≤ {bound:g}"
        axes.bar(places, heights, width, label=label, color=LINES[number % len(LINES)][0])
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylim(0, 100)
    axes.set_ylabel("fewest experts, %")
    axes.legend(loc="upper center", ncols=len(kinds))


_DRAWN: dict[Axis, Callable[[Axes, Sequence[CurvePoint]], None]] = {
    "coverage": _draw_coverage,
    "experts_per_token": _draw_experts_per_token,
    "bits": _draw_bits,
    "drop_cold": _draw_reads,
}


def _draw_line(
    axes: Axes,
    places: Sequence[float],
    points: Sequence[CurvePoint],
    label: str | None,
    color: str,
    pattern: object,
    marker: str,
) -> None:
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylabel("KLD, nats per token")
    if not points:
        return
    klds = [point.kld for point in points]
    below = [0.0 if kld.low is None else kld.value - kld.low for kld in klds]
    above = [0.0 if kld.high is None else kld.high - kld.value for kld in klds]
    values = [kld.value for kld in klds]
    line = axes.errorbar(
        places, values, yerr=[below, above], label=label, color=color, marker=marker, capsize=1.5, elinewidth=0.7
    )
    line.lines[0].set_linestyle(pattern)  # type: ignore[arg-type]


def _name(axes: Axes, place: float, point: CurvePoint, text: str) -> None:
    axes.annotate(text, (place, point.kld.value), xytext=(4, 4), textcoords="offset points", fontsize=7)
