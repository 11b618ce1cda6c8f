"""Ends a request's forward pass at the next layer, without touching anybody else's, and sees that passes go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coterie.passes.current import Request, Stated, Stopped
from coterie.spec import Event, ExpertsSelected


@contextmanager
def stoppable(should_stop: Callable[[], bool] | None) -> Iterator[Request]:
    """Inside, this thread's forward passes are of one request, and raise ``Stopped`` when it is to end.

    Args:
        should_stop: Asked before the experts of every layer are computed; once it says True, the pass is ended. None
            never does.

    Yields:
        The request.
    """
    request = Request()
    if should_stop is not None:
        request.before_layer = stopping_when(should_stop)
    with Stated(request):
        yield request


def stopping_when(should_stop: Callable[[], bool]) -> Callable[[], None]:
    """What is to be called before each layer, so that a pass ends when somebody says so.

    Args:
        should_stop: As :func:`stoppable` takes it.
    """

    def ask() -> None:
        if should_stop():
            raise Stopped

    return ask


class Pulse:
    """An observer that notes whether the model makes progress.

    Attributes:
        beat: When a layer was last computed, on :func:`time.monotonic`.
    """

    def __init__(self) -> None:
        self.beat = time.monotonic()

    def on_event(self, event: Event) -> None:
        """A layer's experts are about to be computed."""
        if isinstance(event, ExpertsSelected):
            self.beat = time.monotonic()
