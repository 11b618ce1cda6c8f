"""From checkpoint to store and back: extraction, verification against the source, and what a model holds."""

from coterie.extract.extraction import ExtractionReport, extract
from coterie.extract.progress import Progress, ProgressCallback

__all__ = ["ExtractionReport", "Progress", "ProgressCallback", "extract"]
