"""Waiting that an interrupt cannot turn into another error: nobody waits while it has a lock that it must give back.

``Condition.wait`` gives its lock up before it has made sure of taking it again. A KeyboardInterrupt that arrives in
between leaves the ``with`` block around it to release a lock that its thread does not have, and becomes a RuntimeError.
"""

from __future__ import annotations

import threading


class Waiters:
    """Threads that wait for a change of what a lock guards.

    A thread looks at it with the lock, joins, lets go of the lock and waits; then it looks again.
    """

    def __init__(self) -> None:
        self._bars: list[threading.Lock] = []

    def join(self) -> threading.Lock:
        """A bar to wait at. Needs the lock; what changes from now on lifts it."""
        bar = threading.Lock()
        bar.acquire()
        self._bars.append(bar)
        return bar

    @staticmethod
    def wait(bar: threading.Lock) -> None:
        """Waits until the bar is lifted. Must not have the lock."""
        bar.acquire()

    def wake_all(self) -> None:
        """Lifts all bars. Needs the lock."""
        # In this order, and looking first: whoever was interrupted in the middle has lifted none for good, or twice.
        for bar in self._bars:
            if bar.locked():
                bar.release()
        self._bars.clear()
