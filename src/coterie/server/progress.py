"""How far a prompt has been read, within the stream of its answer: in llama-server's words, for whoever asks for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from coterie.generation.tickets import Event, Prepared, Progress

if TYPE_CHECKING:
    from coterie.server.choices import Choices


class PromptProgress:
    """Turns what becomes of answers into what a stream says of their prompts.

    Args:
        choices: The answers.
        wanted: Whether the client asks for it. If not, there is nothing to say.
    """

    def __init__(self, choices: Choices, *, wanted: bool) -> None:
        self._choices = choices
        self._wanted = wanted
        self._said: dict[int, int] = {}

    def of(self, number: int, event: Event) -> dict[str, Any] | None:
        """What there is to say after an event; None if nothing is new.

        Args:
            number: Which answer.
            event: What became of it.
        """
        match event:
            case Prepared(int() as total):
                read = reused = 0
            case Progress(read, total, reused):
                pass
            case _:
                return None
        if not self._wanted or read <= self._said.get(number, -1):
            return None
        self._said[number] = read
        begun = self._choices.tickets[number].begun
        elapsed = 0 if begun is None or not read else round(1000 * (time.monotonic() - begun))
        return {"total": total, "cache": reused, "processed": read, "time_ms": elapsed}
