"""From checkpoint to store and back: extraction, verification against the source, and what a model holds."""

from coterie.extract.extraction import ExtractionReport, extract
from coterie.extract.inspection import InspectReport, MemoryFit, inspect, memory_fit
from coterie.extract.progress import Progress, ProgressCallback
from coterie.extract.verification import ModelVerification, verify

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
    "verify",
]
