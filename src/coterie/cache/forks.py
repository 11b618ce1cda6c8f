"""Tells what has threads of its own that it is now in a forked child, where those threads are not."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """Something that wants to know."""

    def on_forked(self) -> None:
        """Called in the child, before anything else runs there; it must take no lock."""
        ...


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_registered = False


def watch_forks(subject: Forkable) -> None:
    """Calls ``subject.on_forked`` in every later forked child, for as long as the subject lives.

    A flag set once is far cheaper to look at, in every decode step, than the process id.
    """
    global _registered
    _watched.add(subject)
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_tell)
        _registered = True


def _tell() -> None:
    for subject in list(_watched):
        subject.on_forked()
