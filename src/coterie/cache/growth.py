"""How the arena comes by its memory where new memory is slow: apart from the reads that would wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from coterie.cache.arena import Slot, SlotArena
from coterie.native import library, touch_when_idle
from coterie.plan.cpu import usable_cores
from coterie.plan.new_memory import SLOW

LEAST_CAPACITY = 64 * 2**20
"""Bytes of the smallest arena for which this is worth a thread."""

PROBE_EVERY = 16 * 2**20
"""Bytes of new memory that reads take before the speed of it is tried again."""

PATIENCE_S = 0.5
"""Seconds of waiting in which a slot gets no memory that show that the processors are not idle even then."""

QUIET_S = 0.5
"""Seconds without a request after which the processors are likely to be idle."""

PIECE = 2 * 2**20
"""Bytes of memory found at a time: a huge page."""

_MOST_FINDERS = 4
"""Threads that find memory at once at most: they write at the speed of memory where the host gives it at once."""

_NEWEST = 0.25
"""Weight of the newest speed in the mean."""

Touch = Callable[[memoryview], float]


class Growth:
    """Says whether reads are to wait for new memory, and what memory the arena is owed; guarded by the cache's lock.

    Memory is found when it is first written to. Mostly that takes a fraction of the time of a read, and the arena
    grows with the reads that need it. In a virtual machine whose host takes unused memory away it can take many times
    the time of a read. Then a miss takes the slot of another expert, as it would in a full arena, and the arena is
    owed the memory that it would have taken, which :class:`Grower` gives it while a processor is idle. So it comes to
    hold no more than it would have, and nobody waits.

    Args:
        arena: What grows.
        touch: Gives free memory pages, and says how many seconds of processor time that took; None for never.
        waited: Gives the seconds that consumers have waited so far.

    Attributes:
        touch: That given, until it could not be done.
        is_slow: Whether new memory was found to be slow.
        is_owed: Whether there is memory to be found.
    """

    def __init__(self, arena: SlotArena, touch: Touch | None, *, waited: Callable[[], float]) -> None:
        self._arena = arena
        self.touch = touch
        self._waited = waited
        self._owed: dict[int, int] = {}
        self._until_probe = 0
        self._seconds_per_byte: float | None = None
        self._began = 0.0
        self.is_slow = False
        self.is_owed = False

    @property
    def goes_on(self) -> bool:
        """Whether memory is being found apart from reads, on processors that are idle."""
        return self.is_owed and self.is_slow

    @property
    def apart(self) -> bool:
        """Whether a miss takes what another expert has rather than wait for new memory."""
        if not self.is_slow:
            return False
        return not self._arena.growing or self._waited() - self._began < PATIENCE_S

    def taken(self, nbytes: int) -> None:
        """A read takes a slot that has no memory yet."""
        if self.touch is None or self._arena.capacity < LEAST_CAPACITY:
            return
        if self._until_probe <= 0:
            self._until_probe = PROBE_EVERY
            self.owe(nbytes)
        self._until_probe -= nbytes

    def owe(self, nbytes: int) -> None:
        """A read did without a new slot of that size."""
        self._owed[nbytes] = self._owed.get(nbytes, 0) + 1
        self.is_owed = True

    def go_on(self, seconds_per_byte: float | None, nbytes: int) -> None:
        """Memory was being found before there was an arena. Where it is slow, the arena is owed all that it lacks.

        Args:
            seconds_per_byte: How slow it was, if that is known.
            nbytes: Bytes of the slots that most records take.
        """
        if self.touch is None or seconds_per_byte is None:
            return
        self._seconds_per_byte = seconds_per_byte
        self._look()
        lacking = (self._arena.capacity - self._arena.committed) // nbytes
        if self.is_slow and lacking > 0:
            self._owed[nbytes] = lacking
            self._look()

    def begin(self) -> Slot | None:
        """A slot to be given memory, as large as a read would have taken; None if no memory is owed."""
        while self._owed:
            nbytes, count = next(iter(self._owed.items()))
            slot = self._arena.grow(nbytes)
            if slot is None or count == 1:
                # What does not fit now was asked for when less was in use: it is owed no more.
                del self._owed[nbytes]
            else:
                self._owed[nbytes] = count - 1
            if slot is not None:
                self._began = self._waited()
                return slot
        self._look()
        return None

    def end(self, slot: Slot, seconds: float) -> None:
        """A slot has memory, which took so many seconds of processor time to find."""
        self._arena.grown(slot)
        if self.touch is not None:  # another thread may have given up meanwhile
            found = seconds / slot.nbytes
            before = self._seconds_per_byte
            self._seconds_per_byte = found if before is None else before + _NEWEST * (found - before)
        self._look()

    def give_up(self, slot: Slot | None) -> None:
        """Memory could not be found, for the slot if there is one: from now on it comes with reads."""
        self.touch = self._seconds_per_byte = None
        self._owed.clear()
        if slot is not None:
            self._arena.grown(slot)
        self._look()

    def _look(self) -> None:
        """Keeps what others look at in step."""
        self.is_owed = bool(self._owed or self._arena.growing)
        self.is_slow = self._seconds_per_byte is not None and self._seconds_per_byte * SLOW >= 1


def native_touch() -> Touch | None:
    """How free memory is given pages while a processor is idle; None without the native library."""
    native = library()
    return None if native is None else lambda memory: touch_when_idle(native, memory)


def finders() -> int:
    """How many threads find memory at once."""
    return min(usable_cores(), _MOST_FINDERS)


class Grower:
    """The threads that give an arena the memory that it is owed, piece by piece. They begin with the first that is.

    Where the host of a virtual machine finds memory, it does so for each processor by itself: as many threads as can be
    idle find more.

    Args:
        growth: What is owed.
        lock: The cache's lock.
        is_quiet: Whether the processors are likely to be idle. Called with the lock.
        on_grown: Called with the lock when there is more memory.
    """

    def __init__(
        self,
        growth: Growth,
        lock: threading.RLock,
        *,
        is_quiet: Callable[[], bool],
        on_grown: Callable[[], None],
    ) -> None:
        self._growth = growth
        self._lock = lock
        self._is_quiet = is_quiet
        self._on_grown = on_grown
        self._work = threading.Condition(lock)
        self._closed = False
        self._threads: list[threading.Thread] = []
        # Threads that wait for memory to be owed.
        self._resting = 0

    def notify(self) -> None:
        """Memory may be owed, or a processor idle. Needs the lock."""
        if self._growth.is_owed and not self._closed:
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._run, name=f"coterie-grow-{number}", daemon=True)
                    for number in range(finders())
                ]
                for thread in self._threads:
                    thread.start()
            elif self._resting or self._is_quiet():
                # To wake a thread that has to wait on takes a processor from those who compute.
                self._work.notify_all()

    def close(self) -> None:
        """Ends the threads after the pieces that they are at. Needs the lock."""
        self._closed = True
        self._work.notify_all()

    def join(self) -> None:
        """Waits for the threads to end. Must not have the lock."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        slot: Slot | None = None
        try:
            while (slot := self._next()) is not None:
                seconds = self._touch(slot)
                if seconds is None:
                    break
                with self._lock:
                    self._growth.end(slot, seconds)
                    slot = None
                    self._on_grown()
        except Exception:
            # Reads that take new memory themselves say what is wrong with it, to whoever needs it.
            with self._lock:
                self._growth.give_up(slot)
                self._on_grown()

    def _next(self) -> Slot | None:
        with self._lock:
            while not self._closed:
                slot = self._growth.begin()
                if slot is not None:
                    return slot
                self._resting += 1
                self._work.wait()
                self._resting -= 1
        return None

    def _touch(self, slot: Slot) -> float | None:
        """Gives a slot memory; returns the seconds of processor time that took, or None if the cache is closed.

        Raises:
            OSError: If memory could not be found, for this slot or, meanwhile, for another.
        """
        seconds = 0.0
        for start in range(0, slot.nbytes, PIECE):
            with self._lock:
                while not (self._closed or self._is_quiet()):
                    self._work.wait(QUIET_S)
                if self._closed:
                    return None
                touch = self._growth.touch
            if touch is None:
                raise OSError("another thread could not find memory")
            seconds += touch(slot.record[start : start + PIECE])
        return seconds
