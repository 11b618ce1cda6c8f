"""The reading of bytes: from the places that a source names into memory, past the page cache where that works."""

from coterie.records.reads import RecordReader

__all__ = ["RecordReader"]
