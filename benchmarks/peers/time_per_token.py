"""Draws what each token of an answer took, from the first to the last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """What the tokens of one engine took.

    Attributes:
        name: The engine.
        steps_s: Seconds of each token after the first.
    """

    name: str
    steps_s: Sequence[float]


def time_per_token_figure(panels: Mapping[str, Sequence[Curve]]) -> bytes:
    """An SVG file: a panel for each case, a curve for each engine, on one logarithmic scale of time.

    Args:
        panels: By case.

    Raises:
        MissingPackageError: If Matplotlib is not installed.
    """
    from coterie.analysis.plots.canvas import LINES, new_figure, render, style

    engines = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    with style():
        figure = new_figure("Time per token, medians of rounds", 2.8)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        drawn = {}
        for panel, (case, curves) in zip(axes, panels.items(), strict=True):
            for curve in curves:
                color, line, _ = LINES[engines.index(curve.name) % len(LINES)]
                # Tokens that came together have no time of their own.
                times = [1e3 * one if one > 0 else math.nan for one in curve.steps_s]
                drawn[curve.name] = panel.plot(range(2, 2 + len(times)), times, color=color, linestyle=line)[0]
            panel.set(title=case, xlabel="token", yscale="log")
        axes[0].set_ylabel("ms")
        figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=max(1, len(drawn)))
    return render(figure, "svg")
