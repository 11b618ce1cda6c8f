"""How far a long job is, as one line on standard error that is written anew."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts bytes.

    Args:
        what: What is being made.
        total: Bytes in all.
        done: Bytes that an earlier run made.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what = what
        self._total = total
        self._done = done
        self._skipped = done
        self._began = time.monotonic()
        self._shown = 0.0

    def advance(self, nbytes: int) -> None:
        """More bytes are there."""
        self._done += nbytes
        now = time.monotonic()
        if now - self._shown < 2 and self._done < self._total:
            return
        self._shown = now
        rate = (self._done - self._skipped) / max(now - self._began, 1e-3)
        end = "\n" if self._done >= self._total or not sys.stderr.isatty() else "\r"
        left = (self._total - self._done) / max(rate, 1)
        print(
            f"{self._what}: {self._done / 1e9:6.2f} of {self._total / 1e9:.2f} GB, {rate / 1e6:4.0f} MB/s, "
            f"{left:4.0f} s left",
            end=end,
            file=sys.stderr,
            flush=True,
        )
