"""The cache's lock, and whether the cache may still be used: not once it is closed, and not in a forked child."""

from __future__ import annotations

import os
import threading
import weakref

from coterie.errors import UsageError

_watched: weakref.WeakSet[Guard] = weakref.WeakSet()
_registered = False


class Guard:
    """What everything in a cache is guarded by.

    The lock is reentrant because a lease that is garbage-collected releases itself, wherever that happens.

    Attributes:
        lock: The cache's lock.
        usable: Neither closed nor forked: the one thing that the fast path looks at.
        closed: Whether the cache is closed.
        forked: Whether this is a child of the process that the cache was made in. Its threads are not here, and the
            lock may be held by one of them: nothing works any more.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.usable = True
        self.closed = False
        self.forked = False
        _watch_forks(self)

    def check(self) -> None:
        """Raises UsageError if the cache is closed or belongs to another process."""
        if self.usable:
            return
        if self.closed and not self.forked:
            raise UsageError("The expert cache is closed.", advice="Open the model again.")
        raise UsageError(
            "The expert cache was made in another process: its reading threads do not survive a fork.",
            advice="Open the model in the process that uses it.",
        )

    def close(self) -> None:
        """From now on :meth:`check` raises."""
        self.closed = True
        self.usable = False

    def on_forked(self) -> None:
        """This is a forked child. Takes no lock."""
        self.forked = True
        self.usable = False


def _watch_forks(guard: Guard) -> None:
    """Tells a guard of every later forked child, for as long as it lives.

    A flag set once is far cheaper to look at, in every decode step, than the process id.
    """
    global _registered
    _watched.add(guard)
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_tell)
        _registered = True


def _tell() -> None:
    for guard in list(_watched):
        guard.on_forked()
