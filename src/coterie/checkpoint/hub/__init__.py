"""Repositories of the Hub: asked, listed, read in part, and downloaded into the cache that all of its clients share.

Requests are made with the Hub client's own session and tokens; retrying, waiting, resuming and checking are done here,
since the client waits as long as a server says, gives up at a broken connection and compares sizes only.
"""

from coterie.checkpoint.hub.repository import Repository, find_repository

__all__ = ["Repository", "find_repository"]
