"""Ends a request's forward pass at the next layer, without touching anybody else's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coterie.engine.runtime import Runtime
from coterie.passes.current import Request, Stated, current
from coterie.spec import Event, ExpertsSelected

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Stopped(Exception):
    """Ends a forward pass because the caller wants no more; never leaves this package."""


class StopWatch:
    """An observer that ends a request's forward pass at the next layer once the caller wants it to end.

    Of a decode step, which is told of once it is over, it ends the next one. A pass that computes others' tokens as
    well is not ended.
    """

    def __init__(self, should_stop: Callable[[], bool], request: Request) -> None:
        self._should_stop = should_stop
        self._request = request

    def on_event(self, event: Event) -> None:
        """Asks before each layer's experts are computed: a long prefill can be stopped, and no lease is open then."""
        if not isinstance(event, ExpertsSelected):
            return
        rows = current().rows
        if rows and all(row.request is self._request for row in rows) and self._should_stop():
            raise Stopped


@contextmanager
def stoppable(model: PreTrainedModel, should_stop: Callable[[], bool] | None) -> Iterator[Request]:
    """Inside, this thread's forward passes are of one request, and raise :class:`Stopped` when it is to end.

    Args:
        model: From :func:`coterie.load`.
        should_stop: Asked before every layer; soon after it says True, a pass is ended. None never does.

    Yields:
        The request.
    """
    request = Request()
    runtime: Runtime = model.coterie
    watch = None if should_stop is None else StopWatch(should_stop, request)
    if watch is not None:
        runtime.add_observer(watch)
    try:
        with Stated(request):
            yield request
    finally:
        if watch is not None:
            runtime.remove_observer(watch)


class StopWatches:
    """As :class:`StopWatch`, of whichever requests are to end, and notes that the model makes progress.

    Attributes:
        beat: When a layer was last computed, on :func:`time.monotonic`.
    """

    def __init__(self) -> None:
        self.beat = time.monotonic()
        self._ending: set[Request] = set()

    def add(self, request: Request) -> None:
        """Has a request's passes end at the next layer, in whatever thread this is called."""
        self._ending.add(request)

    def discard(self, request: Request) -> None:
        """It has ended."""
        self._ending.discard(request)

    def on_event(self, event: Event) -> None:
        """Asks before each layer's experts are computed."""
        if not isinstance(event, ExpertsSelected):
            return
        self.beat = time.monotonic()
        if self._ending:
            rows = current().rows
            if rows and all(row.request in self._ending for row in rows):
                raise Stopped
