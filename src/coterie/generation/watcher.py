"""Whoever is told how an engine's requests end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from coterie.generation.tickets import Phase, Ticket

if TYPE_CHECKING:
    from coterie.generation.completion import Completion
    from coterie.generation.speech import Speech


class Watcher(Protocol):
    """Is told how requests end, in the engine's threads."""

    def finished(self, ticket: Ticket, completion: Completion) -> None:
        """A request was answered."""

    def spoken(self, ticket: Ticket, speech: Speech) -> None:
        """A request that was answered had its answer spoken; told after :meth:`finished`."""

    def failed(self, ticket: Ticket, error: BaseException) -> None:
        """A request that was taken on got no whole answer."""

    def cancelled(self, phase: Phase) -> None:
        """A request was given up where it was."""
