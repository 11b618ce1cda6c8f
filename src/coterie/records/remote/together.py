"""Several requests at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def all_together(
    function: Callable[[Item, threading.Event], Result], items: Sequence[Item], *, workers: int
) -> list[Result]:
    """Applies a function to all items, some at a time, and returns the results in order.

    The first error ends it: what has not begun is not begun any more. Who interrupts it need not wait for servers
    that do not answer, since the threads do not keep the process alive.

    Args:
        function: Told an item, and an event that is set when its result is not wanted any more.
        items: The items.
        workers: How many at a time.

    Raises:
        Exception: What the function raised first.
    """
    stopped = threading.Event()
    if len(items) <= 1 or workers <= 1:
        return [function(item, stopped) for item in items]
    waiting = list(enumerate(items))[::-1]
    done: SimpleQueue[tuple[int, Result | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        while not stopped.is_set():
            try:
                index, item = waiting.pop()
            except IndexError:
                return
            try:
                done.put((index, function(item, stopped), None))
            except BaseException as error:
                done.put((index, None, error))

    for number in range(min(workers, len(items))):
        threading.Thread(target=work, name=f"coterie-hub-{number}", daemon=True).start()
    results: dict[int, Result | None] = {}
    try:
        while len(results) < len(items):
            try:
                index, result, error = done.get(timeout=0.5)  # a wait without end would not hear Ctrl-C everywhere
            except Empty:
                continue
            if error is not None:
                raise error
            results[index] = result
    finally:
        stopped.set()
    return [results[index] for index in range(len(items))]  # type: ignore[misc]
