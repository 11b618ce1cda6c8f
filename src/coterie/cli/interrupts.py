"""Ctrl-C as a request to stop, where a command wants to finish properly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130
"""The exit code after Ctrl-C."""


@contextmanager
def ctrl_c_requests_stop() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C only sets a flag; the second interrupts as usual.

    Raising KeyboardInterrupt anywhere would do for a program that ends; a session that goes on needs its locks and
    leases whole.

    Yields:
        A function that says whether Ctrl-C was pressed.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set  # only the main thread may handle signals
        return
    before = signal.getsignal(signal.SIGINT)

    def request(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, request)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
