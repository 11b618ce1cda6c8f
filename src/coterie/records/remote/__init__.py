"""Bytes of servers: requests that are tried again, and files that are read by ranges.

Requests are made with the Hub client's own session and tokens; retrying, waiting, resuming and checking are done here,
since the client waits as long as a server says, gives up at a broken connection and compares sizes only.
"""

from coterie.records.remote.http_file import HttpFile
from coterie.records.remote.range_reader import RangeReader, Received, expecting
from coterie.records.remote.rate import RateLimit

__all__ = ["HttpFile", "RangeReader", "RateLimit", "Received", "expecting"]
