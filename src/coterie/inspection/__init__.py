"""What a store or a checkpoint holds, and whether it is whole."""

from coterie.inspection.contents import inspect
from coterie.inspection.report import InspectReport
from coterie.inspection.verification import ModelVerification, verify
from coterie.inspection.what_fits import MemoryFit, memory_fit

__all__ = ["InspectReport", "MemoryFit", "ModelVerification", "inspect", "memory_fit", "verify"]
