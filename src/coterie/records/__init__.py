"""The reading of bytes: from the places that a source names into memory, past the page cache where that works."""

from coterie.records.files import LocalFile
from coterie.records.ranges import pieces, pieces_of, read_range
from coterie.records.reads import RecordReader

__all__ = ["LocalFile", "RecordReader", "pieces", "pieces_of", "read_range"]
