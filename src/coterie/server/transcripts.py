"""What was said in answers that were spoken: clients of OpenAI send the id of an answer's sound back, not its text."""

from __future__ import annotations

from collections import OrderedDict

LASTS_S = 3600
"""Seconds for which an id is known."""

_MOST = 1000
_MOST_CHARACTERS = 4 << 20


class Transcripts:
    """The texts of the last answers that were spoken, for an hour, in memory and nowhere else.

    An id is known under the key that its answer was made under, and under no other. Belongs to the event loop.

    Args:
        most: Texts that are kept.
        most_characters: Characters of all of them together.
    """

    def __init__(self, most: int = _MOST, most_characters: int = _MOST_CHARACTERS) -> None:
        self._most = most
        self._most_characters = most_characters
        self._characters = 0
        self._kept: OrderedDict[tuple[str, str], tuple[float, str]] = OrderedDict()

    def keep(self, salt: str, name: str, text: str, expires_at: float) -> None:
        """Keeps a text; what is oldest makes room.

        Args:
            salt: Whose it is.
            name: The id of its sound.
            text: What was said.
            expires_at: Until when, in seconds since 1970.
        """
        self._drop((salt, name))
        self._kept[salt, name] = (expires_at, text)
        self._characters += len(text)
        while len(self._kept) > self._most or (self._characters > self._most_characters and len(self._kept) > 1):
            self._drop(next(iter(self._kept)))

    def find(self, salt: str, name: str, now: float) -> str | None:
        """What was said; None if it is not known, or not any more.

        Args:
            salt: Who asks.
            name: The id of the sound.
            now: In seconds since 1970.
        """
        expires_at, text = self._kept.get((salt, name), (0.0, ""))
        return text if now < expires_at else None

    def _drop(self, key: tuple[str, str]) -> None:
        _, text = self._kept.pop(key, (0.0, ""))
        self._characters -= len(text)
