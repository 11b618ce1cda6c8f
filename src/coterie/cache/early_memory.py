"""Memory for experts that is found before there is a cache: while the rest of a model is being loaded."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from coterie.cache.arena import KERNEL_TAKES_PAGES_BACK, AddressRange
from coterie.cache.growth import PIECE, Touch, finders, native_touch


class EarlyMemory:
    """Finds memory on threads that only run while processors are idle, until it is stopped.

    Reading weights from a disk leaves processors idle. Where new memory is slow (see :class:`Growth`), a large arena
    takes longer to find than the first answer takes, so it begins here. Use it as a context: leaving it stops the
    threads. The memory stays for as long as something refers to it, and is given to a cache by its ``early`` argument.

    Args:
        nbytes: Bytes that are wanted in the end.
        touch: As for :class:`Growth`.

    Attributes:
        nbytes: That given.
        addresses: Where the memory is.
        found: Bytes that have memory, from the first address on; final once it is stopped.
    """

    def __init__(self, nbytes: int, touch: Touch) -> None:
        self.nbytes = nbytes
        self.addresses = AddressRange(nbytes)
        self.addresses.prefer_huge_pages(nbytes)
        self.found = 0
        self._seconds = 0.0
        self._touch = touch
        self._lock = threading.Lock()
        self._begun = 0
        self._end = nbytes
        self._threads = [
            threading.Thread(target=self._run, name=f"coterie-early-{number}", daemon=True)
            for number in range(finders())
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def of(cls, nbytes: int) -> EarlyMemory | None:
        """For an arena of so many bytes; None where memory cannot be found ahead of its use, or not given back."""
        touch = native_touch()
        return cls(nbytes, touch) if touch is not None and KERNEL_TAKES_PAGES_BACK else None

    @property
    def seconds_per_byte(self) -> float | None:
        """Processor time that new memory took; None if none was found."""
        return self._seconds / self.found if self.found else None

    def stop(self) -> None:
        """Ends the search after the pieces that it is at. Harmless when repeated."""
        with self._lock:
            self._end = min(self._end, self._begun)
        for thread in self._threads:
            thread.join()
        self.found = self._end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        start = self.addresses.start
        with memoryview(self.addresses.memory) as memory:
            while True:
                with self._lock:
                    begin = self._begun
                    end = min(begin + PIECE, self._end)
                    if begin >= end:
                        return
                    self._begun = end
                try:
                    with memory[start + begin : start + end] as piece:
                        seconds = self._touch(piece)
                except Exception:  # reads that take new memory themselves say what is wrong with it
                    with self._lock:
                        self._end = min(self._end, begin)
                    return
                with self._lock:
                    self._seconds += seconds
