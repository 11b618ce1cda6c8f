"""A store as a repository of the Hub, which everything that opens models opens by its id."""

from coterie.publishing.publishing import Publication, publish

__all__ = ["Publication", "publish"]
