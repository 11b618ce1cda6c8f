"""What routers look like without any data, and pictures and reports of what profiles and traces say.

:func:`examine_routers` reads the matrices of a model's routers and says what their geometry shows; the functions that
end in ``_figure`` give Matplotlib figures, drawn without pyplot, and :func:`render` makes files of them. It takes the
extra ``analysis``. docs/routers.md and docs/plots.md say what the figures mean.
"""

from coterie.analysis.agreement import Grouping
from coterie.analysis.examination import examine_routers
from coterie.analysis.geometry import (
    Agreement,
    LayerOverlap,
    Neighbourhood,
    RouterAnalysis,
    RouterLayer,
    UnsupportedRouter,
)
from coterie.analysis.matrices import RouterMatrix, Routers
from coterie.analysis.neighbours import Neighbour, nearest_experts
from coterie.analysis.plots import (
    Coactivation,
    PictureFormat,
    activation_figure,
    coactivation_figure,
    load_figure,
    picture_format,
    render,
    residency_figure,
    separation_figure,
)
from coterie.analysis.report import (
    Answer,
    Claim,
    Heads,
    Picture,
    Report,
    ReportPages,
    SalientTokens,
    Table,
    Trial,
    html_page,
    make_report,
    markdown_page,
    run_trial,
)
from coterie.analysis.spectrum import effective_rank

__all__ = [
    "Agreement",
    "Answer",
    "Claim",
    "Coactivation",
    "Grouping",
    "Heads",
    "LayerOverlap",
    "Neighbour",
    "Neighbourhood",
    "Picture",
    "PictureFormat",
    "Report",
    "ReportPages",
    "RouterAnalysis",
    "RouterLayer",
    "RouterMatrix",
    "Routers",
    "SalientTokens",
    "Table",
    "Trial",
    "UnsupportedRouter",
    "activation_figure",
    "coactivation_figure",
    "effective_rank",
    "examine_routers",
    "html_page",
    "load_figure",
    "make_report",
    "markdown_page",
    "nearest_experts",
    "picture_format",
    "render",
    "residency_figure",
    "run_trial",
    "separation_figure",
]
