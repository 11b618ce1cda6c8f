"""The reading of bytes: from the places that a source names into memory, past the page cache where that works."""

from coterie.records.files import FileChanged, LocalFile
from coterie.records.ranges import piece_buffer, pieces, pieces_of, read_range
from coterie.records.reads import RecordReader

__all__ = ["FileChanged", "LocalFile", "RecordReader", "piece_buffer", "pieces", "pieces_of", "read_range"]
