"""Where the time of nested work goes: each part is charged with what it took without the parts inside it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


class Stopwatch:
    """Seconds by part, in one thread.

    Attributes:
        seconds: Part → wall-clock seconds.
        calls: Part → how often it was entered.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._open: list[str] = []
        self._since = 0.0

    def clear(self) -> None:
        """Forgets what it measured; what is open goes on."""
        self.seconds.clear()
        self.calls.clear()
        self._since = time.perf_counter()

    def enter(self, part: str) -> None:
        """The part begins."""
        self._charge()
        self.calls[part] += 1
        self._open.append(part)

    def leave(self) -> None:
        """The innermost part that is open ends."""
        self._charge()
        self._open.pop()

    def module(self, part: str, module: Any) -> None:
        """Charges a part with the forward passes of a module."""
        module.register_forward_pre_hook(lambda *_: self.enter(part))
        module.register_forward_hook(lambda *_: self.leave(), always_call=True)

    @contextmanager
    def method(self, part: str, owner: type, name: str) -> Iterator[None]:
        """Inside, a part is charged with the calls of a method of a class."""
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            try:
                return original(*args, **kwargs)
            finally:
                self.leave()

        with patch.object(owner, name, timed):
            yield

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
