"""Holds an engine's thread before every pass, or in a layer of one, until a test lets it go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest

from coterie.generation.engine import Engine
from coterie.generation.steps import Steps
from coterie.integration import RowRooms
from coterie.passes.current import current
from coterie.spec import Event, ExpertsSelected, StepStarted

LONGEST_S = 60
"""Nothing in a test takes so long: who waits for longer hangs."""


class Gate:
    """One engine's thread, which goes on when it is told to.

    Args:
        engine: It has not started yet.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._where: Literal["on", "before", "within"] = "on"
        self._thread: int | None = None
        self._open = False
        # Layers that it computes before it is held.
        self._left: int | None = None
        engine._thread._steps = _Held(self)

    def settle(self) -> None:
        """Waits until it is held, or has nothing to do."""
        end = time.monotonic() + LONGEST_S
        with self._changed:
            while self._where == "on" and (self._engine.running or self._engine.waiting):
                assert time.monotonic() < end, "it hangs"
                assert self._engine.trouble in (None, "shutting down")
                self._changed.wait(0.002)

    def pass_on(self) -> None:
        """One pass, or the rest of one."""
        self._go_on(None)

    def pass_into(self, layer: int) -> None:
        """A pass up to one of its layers, or as a whole if it has fewer."""
        runtime = self._engine.opened.runtime
        runtime.add_observer(self)
        try:
            self._go_on(layer)
        finally:
            runtime.remove_observer(self)

    def open(self) -> None:
        """Nothing is held any more."""
        with self._changed:
            self._open, self._where = True, "on"
            self._changed.notify_all()

    def before_pass(self) -> None:
        """The thread is about to begin one."""
        self._thread = threading.get_ident()
        self._left = None
        self._stay("before")

    def layer(self) -> None:
        """A layer is about to be computed, in whatever thread."""
        if threading.get_ident() != self._thread or self._left is None:
            return
        if self._left > 0:
            self._left -= 1
            return
        self._left = None
        self._stay("within")

    def on_event(self, event: Event) -> None:
        """Layers of prompts tell of themselves; those of answers when all are over."""
        if isinstance(event, StepStarted) or (isinstance(event, ExpertsSelected) and not current().decode):
            self.layer()

    def _go_on(self, left: int | None) -> None:
        self.settle()
        with self._changed:
            self._left, self._where = left, "on"
            self._changed.notify_all()
        self.settle()

    def _stay(self, where: Literal["before", "within"]) -> None:
        with self._changed:
            if self._open:
                return
            self._where = where
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._where == "on", 2 * LONGEST_S)


class _Held(Steps):
    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def step(self) -> tuple[Any, ...]:
        self._gate.before_pass()
        return super().step()


@contextmanager
def layers_of_shared_passes_told(tell: Callable[[], None]) -> Iterator[None]:
    """Inside, who is told hears of every layer of passes that several sequences share, before it is computed."""
    original = RowRooms.places

    def places(self: RowRooms, layer_idx: int) -> Any:
        tell()
        return original(self, layer_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowRooms, "places", places)
        yield
