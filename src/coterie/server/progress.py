"""How far a prompt has been read, within the stream of its answer: in llama-server's words, for whoever asks for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from coterie.generation.tickets import Event, Prepared, Progress

if TYPE_CHECKING:
    from coterie.generation.tickets import Ticket


class PromptProgress:
    """Turns what a request's ticket tells into what a stream says.

    Args:
        ticket: The request.
        wanted: Whether its client asks for it. If not, there is nothing to say.
    """

    def __init__(self, ticket: Ticket, *, wanted: bool) -> None:
        self._ticket = ticket
        self._wanted = wanted
        self._said = -1

    def of(self, event: Event) -> dict[str, Any] | None:
        """What there is to say after an event; None if nothing is new."""
        match event:
            case Prepared(int() as total):
                read = 0
            case Progress(read, total):
                pass
            case _:
                return None
        if not self._wanted or read <= self._said:
            return None
        self._said = read
        begun = self._ticket.begun
        elapsed = 0 if begun is None or not read else round(1000 * (time.monotonic() - begun))
        return {"total": total, "cache": 0, "processed": read, "time_ms": elapsed}
