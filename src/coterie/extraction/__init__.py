"""From checkpoint to store and back: extraction, smaller stores, verification, and what a model holds."""

from coterie.extraction.extraction import ExtractionReport, extract
from coterie.extraction.inspection import InspectReport, MemoryFit, inspect, memory_fit
from coterie.extraction.progress import Progress, ProgressCallback
from coterie.extraction.requantising import quantize
from coterie.extraction.verification import ModelVerification, verify

__all__ = [
    "ExtractionReport",
    "InspectReport",
    "MemoryFit",
    "ModelVerification",
    "Progress",
    "ProgressCallback",
    "extract",
    "inspect",
    "memory_fit",
    "quantize",
    "verify",
]
