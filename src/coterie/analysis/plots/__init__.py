"""Pictures of what experts do, as Matplotlib figures; :func:`render` makes files of them."""

from coterie.analysis.plots.activation import activation_figure
from coterie.analysis.plots.canvas import PictureFormat, picture_format, render
from coterie.analysis.plots.coactivation import Coactivation, coactivation_figure
from coterie.analysis.plots.load import load_figure
from coterie.analysis.plots.residency import residency_figure
from coterie.analysis.plots.separation import separation_figure

__all__ = [
    "Coactivation",
    "PictureFormat",
    "activation_figure",
    "coactivation_figure",
    "load_figure",
    "picture_format",
    "render",
    "residency_figure",
    "separation_figure",
]
