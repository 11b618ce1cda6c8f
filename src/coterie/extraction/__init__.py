"""From checkpoint to store, and from store to smaller store."""

from coterie.extraction.allocation import Allocation, AllocationReport
from coterie.extraction.extraction import ExtractionReport, extract
from coterie.extraction.progress import Progress, ProgressCallback
from coterie.extraction.pruning import PRUNE_BY, PruneBy, prune
from coterie.extraction.requantising import quantize

__all__ = [
    "PRUNE_BY",
    "Allocation",
    "AllocationReport",
    "ExtractionReport",
    "Progress",
    "ProgressCallback",
    "PruneBy",
    "extract",
    "prune",
    "quantize",
]
