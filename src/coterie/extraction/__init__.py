"""From checkpoint to store, and from store to smaller store."""

from coterie.extraction.extraction import ExtractionReport, extract
from coterie.extraction.progress import Progress, ProgressCallback
from coterie.extraction.requantising import quantize

__all__ = ["ExtractionReport", "Progress", "ProgressCallback", "extract", "quantize"]
