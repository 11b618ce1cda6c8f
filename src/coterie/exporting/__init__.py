"""From a store back to a checkpoint that transformers and others open."""

from coterie.exporting.exporting import ExportReport, export

__all__ = ["ExportReport", "export"]
