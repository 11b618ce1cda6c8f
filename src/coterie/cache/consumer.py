"""Who computes with experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar


class Consumer:
    """Whoever computes with experts, one thing after another: what it leases, holds and will ask for next is its own.

    It has one lease or hold at a time. Those that compute at once are several consumers. It may go from thread to
    thread, but must not be in two at once, and a thread must not wait for an expert as one consumer while it keeps
    some as another: each could wait for what the other keeps.

    What is read from slots after the host has gone on, as an accelerator does, is a consumer of another class, which
    says in :meth:`fence` when its slots may be written again.

    Attributes:
        reads_on: Whether it is of such a class: all others have read when they give up, and need not be asked.
    """

    __slots__ = ("__weakref__",)

    reads_on: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.reads_on = cls.fence is not Consumer.fence

    def fence(self, release: Callable[[], None]) -> None:
        """The consumer gives up slots: ``release`` is to be called once nothing that it has begun reads them.

        Here that is at once: whoever computes on the host has finished by then. A device records an event and calls
        ``release`` when it has passed, from any thread and with no lock of its own. Until then the experts stay where
        they are. The cache's lock may be held while this is called, so it must not wait. Calling ``release`` again
        does no harm. If this raises, the experts stay until the lease or hold is collected, when it is asked again;
        the consumer may go on.
        """
        release()
