"""Repositories of the Hub: listed, their headers read, and downloaded into the cache that all of its clients share."""

from coterie.checkpoint.hub.repository import Repository, find_repository

__all__ = ["Repository", "find_repository"]
