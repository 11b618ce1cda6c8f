"""What names an answer: its ids, its time, and the seed of its random numbers where the request gives none.

All of it follows from one word. Whoever makes the same answer again, with the same word, makes it byte for byte.
"""

from __future__ import annotations

import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count

_SEEDS = 1 << 31


@dataclass(frozen=True, slots=True)
class Identity:
    """The names of one answer.

    Attributes:
        word: What they follow from.
        created: When the request came, in seconds since 1970.
        seeded: Whether random numbers follow from it, too.
    """

    word: str
    created: int
    seeded: bool = False
    _made: count[int] = field(default_factory=count, compare=False)

    @classmethod
    def new(cls, *, seeded: bool = False) -> Identity:
        """One that no other answer has."""
        return cls(uuid.uuid4().hex, int(time.time()), seeded)

    def new_id(self) -> str:
        """Another id: 32 hexadecimal digits."""
        return sha256(f"{self.word}:{next(self._made)}".encode()).hexdigest()[:32]

    @property
    def seed(self) -> int | None:
        """A seed for a request that gives none; None where any random numbers will do."""
        return int(sha256(f"{self.word}:seed".encode()).hexdigest(), 16) % _SEEDS if self.seeded else None


_current: ContextVar[Identity | None] = ContextVar("identity", default=None)


def begin(identity: Identity) -> None:
    """From now on, this task makes the answer that has these names."""
    _current.set(identity)


def current() -> Identity:
    """The names of the answer that this task makes."""
    identity = _current.get()
    if identity is None:
        identity = Identity.new()
        _current.set(identity)
    return identity


def new_id(kind: str) -> str:
    """An id for a part of the answer, or for the whole.

    Args:
        kind: What it begins with, such as ``chatcmpl-``.
    """
    return kind + current().new_id()
