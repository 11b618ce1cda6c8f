"""Figures that look alike, and their bytes: the same data gives the same file, on every machine with this Matplotlib.

Nothing here uses pyplot. Settings are Matplotlib's defaults and those below, whatever the user's own are, and only
while something is drawn or written.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from coterie.analysis.matrices import Floats
from coterie.errors import UsageError
from coterie.spec import optional_package

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

PictureFormat = Literal["png", "svg"]

WIDTH = 7.2
"""Inches: the text width of a page."""
SEQUENTIAL = "cividis"
LINES = (
    ("#0072B2", "-", "o"),
    ("#E69F00", "--", "s"),
    ("#000000", "-.", "^"),
    ("#56B4E9", ":", "D"),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "v"),
)
"""Colour, line and marker of each curve: colours of Okabe and Ito, none of them red or green."""
EQUAL = "#666666"
"""Colour of lines that stand for chance or equality."""
_BLUE_TO_ORANGE = ("#0B3C8C", "#4A8FD0", "#F7F7F7", "#F0A030", "#8A4A00")
_ABSENT = "#D9D9D9"
_SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "figure.titlesize": 9.0,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 200,
    "figure.dpi": 100,
    "svg.fonttype": "none",
    "svg.hashsalt": "coterie",
    "image.interpolation": "none",
}
_MOST_TICKS = 16


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib with the settings of all pictures; also a decorator.

    Raises:
        MissingPackageError: If Matplotlib is not installed.
    """
    matplotlib = optional_package("matplotlib", "Drawing needs", extra="analysis")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(title: str, height: float) -> Figure:
    """An empty figure.

    Args:
        title: What it shows.
        height: In inches.
    """
    figure: Figure = optional_package("matplotlib.figure", "Drawing needs", extra="analysis").Figure(
        figsize=(WIDTH, height), layout="constrained"
    )
    figure.suptitle(title)
    return figure


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shading:
    """How numbers become colours.

    Attributes:
        colors: From the lowest to the highest; what is not there is grey.
        low: The lowest number.
        high: The highest.
    """

    colors: Colormap
    low: float
    high: float

    @classmethod
    def from_zero(cls, values: Floats) -> Shading:
        """From dark blue at zero to yellow at the largest value, lighter all the way."""
        colors: Colormap = optional_package("matplotlib", "Drawing needs", extra="analysis").colormaps[SEQUENTIAL]
        return cls(colors=colors.with_extremes(bad=_ABSENT), low=0.0, high=_largest(values))

    @classmethod
    def around_zero(cls, values: Floats) -> Shading:
        """From blue over almost white at zero to orange, alike to people who do not tell red from green."""
        made = optional_package("matplotlib.colors", "Drawing needs", extra="analysis").LinearSegmentedColormap
        colors: Colormap = made.from_list("blue-orange", _BLUE_TO_ORANGE)
        reach = _largest(np.abs(values))
        return cls(colors=colors.with_extremes(bad=_ABSENT), low=-reach, high=reach)


def _largest(values: Floats) -> float:
    return max(float(np.nanmax(values)), 1e-9)


def draw_map(axes: Axes, values: Floats, shading: Shading, *, aspect: Literal["auto", "equal"] = "auto") -> AxesImage:
    """Draws a matrix as coloured cells; NaN as grey ones."""
    return axes.imshow(
        np.ma.masked_invalid(values), aspect=aspect, cmap=shading.colors, vmin=shading.low, vmax=shading.high
    )


def number_ticks(axes: Axes, which: Literal["x", "y"], labels: Sequence[str]) -> None:
    """Labels the places 0, 1, … of an axis: every one, or evenly spaced ones where there are many."""
    step = next(
        step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 1000) if len(labels) <= _MOST_TICKS * step
    )
    places = range(0, len(labels), step)
    (axes.set_xticks if which == "x" else axes.set_yticks)(list(places), [labels[place] for place in places])


def picture_format(path: str | Path) -> PictureFormat:
    """The format that a file's name asks for.

    Raises:
        UsageError: If it is neither PNG nor SVG.
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    for known in get_args(PictureFormat):
        if ending == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(f"{Path(path).name} names no picture format.", advice="End it with .png or .svg.", path=path)


def render(figure: Figure, format: PictureFormat) -> bytes:
    """The bytes of a picture file, without dates and versions in them; text in an SVG stays text.

    Args:
        figure: What to write.
        format: ``"png"`` or ``"svg"``.
    """
    metadata = {"Software": None} if format == "png" else {"Date": None, "Creator": None}
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=format, metadata=metadata)
    return buffer.getvalue()
