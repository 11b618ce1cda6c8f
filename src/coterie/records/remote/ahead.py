"""Ranges that are known to be wanted soon, fetched before they are asked for, neighbours together."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from coterie.records.remote.http_file import HttpFile

Range = tuple[HttpFile, int, int]
"""A file, an offset and a number of bytes."""

BLOCK_BYTES = 8 * 2**20
"""Most bytes of one request that is made ahead."""

_BUDGET_BYTES = 64 * 2**20
"""Most bytes that wait in memory to be asked for."""

_GAP = 64 * 2**10
"""Ranges that are no further apart are fetched together: a request costs more than so many bytes."""


@dataclass(slots=True, eq=False)
class _Block:
    """What one request brings: a run of a file that holds ranges, and perhaps gaps between them."""

    file: HttpFile
    start: int
    end: int
    turn: int
    wanted: list[tuple[int, int]] = field(default_factory=list)
    left: int = 0
    begun: bool = False
    data: bytearray | None = None
    error: BaseException | None = None

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    def holds(self, offset: int) -> int:
        """How many wanted bytes follow from an offset on; 0 if this is none of the ranges."""
        index = bisect.bisect_right(self.wanted, offset, key=lambda one: one[0]) - 1
        return max(0, self.wanted[index][1] - offset) if index >= 0 else 0


def joined(ranges: Iterable[Range], *, longest: int = BLOCK_BYTES, gap: int = _GAP) -> list[_Block]:
    """The requests for these ranges, in the order in which the first byte of each is wanted."""
    placed = sorted(enumerate(ranges), key=lambda one: (one[1][0].address, one[1][1]))
    blocks: list[_Block] = []
    for turn, (file, offset, nbytes) in placed:
        end = offset + nbytes
        while offset < end:
            last = blocks[-1] if blocks else None
            close = last is not None and last.file == file and 0 <= offset - last.end <= gap
            if last is None or not close or offset - last.start >= longest:
                last = _Block(file, offset, offset, turn)
                blocks.append(last)
            stop = min(end, last.start + longest)
            last.wanted.append((offset, stop))
            last.left += stop - offset
            last.end, last.turn = stop, min(last.turn, turn)
            offset = stop
    return sorted(blocks, key=lambda block: block.turn)


class Ahead:
    """Fetches ranges with threads of its own, in order, as far ahead as memory is given.

    Whoever asks for a range that was not fetched yet fetches it, so no order of asking can make it wait for ever.

    Args:
        fetch: Fills a buffer from an offset of a file.
        ranges: What will be asked for, in this order.
        workers: Requests at once.
        budget: Bytes that may wait in memory.
    """

    def __init__(
        self,
        fetch: Callable[[HttpFile, int, memoryview], None],
        ranges: Iterable[Range],
        *,
        workers: int = 4,
        budget: int = _BUDGET_BYTES,
    ) -> None:
        self._fetch = fetch
        self._budget = budget
        self._blocks = joined(ranges)
        self._next = 0
        self._held = 0
        self._closed = False
        self._condition = threading.Condition()
        self._places: dict[str, list[_Block]] = {}
        for block in self._blocks:
            self._places.setdefault(block.file.address, []).append(block)
        for blocks in self._places.values():
            blocks.sort(key=lambda block: block.start)
        for number in range(min(workers, len(self._blocks))):
            threading.Thread(target=self._work, name=f"coterie-hub-ahead-{number}", daemon=True).start()

    def take(self, file: HttpFile, offset: int, buffer: memoryview) -> int:
        """Copies bytes that were said to be wanted, waiting for them if need be.

        Returns:
            How many, which may be fewer than fit; 0 if they were not said to be wanted, or were taken before.

        Raises:
            Exception: What fetching them ended in.
        """
        block = self._block(file, offset)
        if block is None:
            return 0
        with self._condition:
            if block.left <= 0:
                return 0
            mine = not block.begun
            if mine:
                block.begun = True
                self._held += block.nbytes
            else:
                self._condition.wait_for(lambda: block.data is not None or block.error is not None or self._closed)
        if mine:
            self._fill(block)
        if block.error is not None:
            raise block.error
        data = block.data
        if data is None:
            return 0  # nobody fetches any more; whoever wants it does
        count = min(len(buffer), block.holds(offset))
        start = offset - block.start
        buffer[:count] = memoryview(data)[start : start + count]
        with self._condition:
            block.left -= count
            if block.left <= 0 and block.data is not None:
                self._held -= block.nbytes
                block.data = None
                self._condition.notify_all()
        return count

    def close(self) -> None:
        """Fetches nothing more and keeps nothing. Harmless when repeated."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _block(self, file: HttpFile, offset: int) -> _Block | None:
        blocks = self._places.get(file.address, [])
        index = bisect.bisect_right(blocks, offset, key=lambda block: block.start) - 1
        return blocks[index] if index >= 0 and blocks[index].holds(offset) else None

    def _work(self) -> None:
        while (block := self._upcoming()) is not None:
            self._fill(block)
            if block.error is not None:
                return

    def _upcoming(self) -> _Block | None:
        """The next block that nobody fetches, once there is room for it; None at the end."""
        with self._condition:
            while not self._closed:
                while self._next < len(self._blocks) and self._blocks[self._next].begun:
                    self._next += 1
                if self._next == len(self._blocks):
                    return None
                block = self._blocks[self._next]
                if self._held == 0 or self._held + block.nbytes <= self._budget:
                    block.begun = True
                    self._held += block.nbytes
                    return block
                self._condition.wait()
            return None

    def _fill(self, block: _Block) -> None:
        data = bytearray(block.nbytes)
        error: BaseException | None = None
        try:
            self._fetch(block.file, block.start, memoryview(data))
        except BaseException as raised:
            error = raised
        with self._condition:
            block.data, block.error = (data, None) if error is None else (None, error)
            self._condition.notify_all()
