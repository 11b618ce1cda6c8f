"""As whom a forward pass asks the cache for experts."""

from __future__ import annotations

import threading

from coterie.cache import Consumer


class _Own(threading.local):
    """The consumer of each thread: a thread runs one forward pass at a time."""

    def __init__(self) -> None:
        self.consumer = Consumer()


_own = _Own()


def current_consumer() -> Consumer:
    """The consumer of the forward pass that this thread runs."""
    return _own.consumer
