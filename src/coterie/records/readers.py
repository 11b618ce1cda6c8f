"""The threads that read: so many reads at once, and the next one ready before the last one ends."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from coterie.errors import CoterieError, ReadError
from coterie.records.reads import RecordRead, RecordReader, Step
from coterie.spec import ExpertKey, RecordLayout

Task = Callable[[], None]


class Room(Protocol):
    """Where a record goes."""

    @property
    def record(self) -> memoryview:
        """The memory, writable."""
        ...

    def views(self, layout: RecordLayout) -> tuple[Any, ...]:
        """What the record is seen as; made by the thread that has read it, without the lock."""
        ...


class Wanted(Protocol):
    """A record that is to be read, and the room that it has."""

    @property
    def key(self) -> ExpertKey:
        """Which expert."""
        ...

    @property
    def layout(self) -> RecordLayout:
        """How the record is laid out."""
        ...

    @property
    def slot(self) -> Room:
        """Where it goes."""
        ...

    @property
    def can_wait(self) -> bool:
        """Whether nobody has asked for it so far: then its read begins only when there is nothing else to read."""
        ...


WantedT = TypeVar("WantedT", bound=Wanted)


class Supply(Protocol[WantedT]):
    """Says what is to be read and takes what was read. Everything here is called with the lock held."""

    def settle(self) -> None:
        """Does what is due before the next choice."""
        ...

    def next_entry(self) -> WantedT | None:
        """What to read next, with a slot of its own."""
        ...

    def is_wanted(self, entry: WantedT) -> bool:
        """Whether what can wait is still worth reading, now that it could begin."""
        ...

    def give_up(self, entry: WantedT) -> None:
        """An entry is not read, as it is not wanted any more."""
        ...

    def has_demand(self) -> bool:
        """Whether it is worth asking for an entry."""
        ...

    def conclude(self, entry: WantedT, tensors: tuple[Any, ...], nbytes: int, error: CoterieError | None) -> None:
        """An entry has been read, or could not be."""
        ...

    def fail(self, error: BaseException) -> None:
        """A thread has come to an end that it should not have."""
        ...


class _Ongoing(Generic[WantedT]):
    """An entry that is being read."""

    __slots__ = ("begun", "entry", "error", "left", "read")

    def __init__(self, entry: WantedT, read: RecordRead) -> None:
        self.entry = entry
        self.read = read
        self.left = len(read.steps)
        self.begun = False
        self.error: BaseException | None = None

    def run(self, step: Step) -> None:
        """Runs one step; what goes wrong is kept for the end."""
        try:
            step.run()
        except Exception as error:
            self.error = error


class Readers(Generic[WantedT]):
    """Reads what the supply asks for.

    Choosing a record, making room for it, opening its file, comparing checksums, telling consumers: in Python, on cold
    processor caches, this takes a good part of a millisecond, in which a disk that is read one record at a time would
    stand still. So there is one thread more than reads at once. Whichever thread is not reading concludes what has
    been read and prepares what comes next, and a thread whose read ends goes on with what is prepared. What somebody
    has asked for overtakes what is only prepared because it might be, and is not read beside it.

    Args:
        supply: What to read.
        reader: Reads it.
        lock: The supply's lock.
        at_once: Reads outstanding at most.
    """

    def __init__(self, supply: Supply[WantedT], reader: RecordReader, lock: threading.RLock, *, at_once: int) -> None:
        self._supply = supply
        self._reader = reader
        self._lock = lock
        self._work = threading.Condition(lock)
        self._at_once = at_once
        # The entry of each step that runs.
        self._running: list[WantedT] = []
        self._preparing = 0
        self._staged: deque[tuple[_Ongoing[WantedT], Step]] = deque()
        self._finished: deque[_Ongoing[WantedT]] = deque()
        self._closed = False
        # Threads that wait for something to read, and whether they have been told of something since they looked.
        self._resting = 0
        self._told = False
        self._rested = threading.Condition(lock)
        self._threads = [
            threading.Thread(target=self._run, name=f"coterie-read-{number}", daemon=True)
            for number in range(at_once + 1)
        ]
        for thread in self._threads:
            thread.start()

    def notify(self) -> None:
        """There may be something to read. Needs the lock."""
        self._told = True
        self._work.notify()

    @property
    def undecided(self) -> bool:
        """Whether they have yet to look at something that they were told of."""
        return self._told

    @property
    def at_rest(self) -> bool:
        """Whether no thread has anything to do."""
        return self._closed or (self._resting == len(self._threads) and not self._told)

    @property
    def prepared(self) -> int:
        """Reads that are ready to begin."""
        return len(self._staged)

    @property
    def finished(self) -> int:
        """Reads that have ended and are not concluded."""
        return len(self._finished)

    def wait_for_rest(self, timeout: float) -> bool:
        """Waits until no thread has anything to do; returns whether that came about in time. Needs the lock."""
        return self._rested.wait_for(lambda: self.at_rest, timeout)

    def close(self) -> None:
        """Ends the threads once their reads have ended. Needs the lock."""
        self._closed = True
        self._work.notify_all()
        self._rested.notify_all()

    def join(self) -> None:
        """Waits for the threads to end. Must not have the lock."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    task = self._next_task()
                if task is None:
                    break
                task()
        except BaseException as error:
            with self._lock:
                self._supply.fail(error)
        with self._lock:
            self._abandon()
        self._reader.close()

    def _next_task(self) -> Task | None:
        while not self._closed:
            self._supply.settle()
            task = self._choose()
            if task is not None:
                # There may be work for one more; each thread that finds some wakes the next.
                if self._has_work():
                    self.notify()
                return task
            self._told = False
            self._resting += 1
            if self.at_rest:
                self._rested.notify_all()
            self._work.wait()
            self._resting -= 1
        return None

    def _choose(self) -> Task | None:
        """What is most urgent: that the disk has all the reads it may have, then consumers, then reading ahead."""
        step = self._begin_staged()
        if step is not None:
            return partial(self._read_on, *step)
        if self._finished and len(self._running) == self._at_once:
            return partial(self._conclude, self._finished.popleft())
        if self._in_hand <= self._at_once:
            entry = self._supply.next_entry()
            if entry is not None:
                self._preparing += 1
                return partial(self._begin, entry)
        return partial(self._conclude, self._finished.popleft()) if self._finished else None

    @property
    def _in_hand(self) -> int:
        """Reads that run, or go before others that are asked for."""
        staged = sum(not ongoing.entry.can_wait for ongoing, _ in self._staged)
        return len(self._running) + self._preparing + staged

    def _place_to_begin(self) -> int | None:
        """Which of the staged reads may begin now; None if none may."""
        if len(self._running) >= self._at_once:
            return None
        for place, (ongoing, _) in enumerate(self._staged):
            if not ongoing.entry.can_wait:
                return place
        early = sum(entry.can_wait for entry in self._running)
        # The disk serves those who wait, undisturbed, and one read stays free for whoever comes next.
        if not self._staged or early < len(self._running) or early >= max(1, self._at_once - 1):
            return None
        return 0

    def _begin_staged(self) -> tuple[_Ongoing[WantedT], Step] | None:
        """The staged read that begins now; None if none may."""
        while (place := self._place_to_begin()) is not None:
            ongoing, step = self._staged[place]
            entry = ongoing.entry
            if ongoing.begun or not entry.can_wait or self._supply.is_wanted(entry):
                del self._staged[place]
                ongoing.begun = True
                self._running.append(entry)
                return ongoing, step
            self._staged = deque(staged for staged in self._staged if staged[0] is not ongoing)
            ongoing.read.close()
            self._supply.give_up(entry)
        return None

    def _has_work(self) -> bool:
        if self._finished or self._place_to_begin() is not None:
            return True
        return self._in_hand <= self._at_once and self._supply.has_demand()

    def _begin(self, entry: WantedT) -> None:
        """Prepares the read of an entry, and begins with it if the disk is free."""
        try:
            read = self._reader.prepare(entry.key, entry.layout, entry.slot.record)
        except Exception as error:
            with self._lock:
                self._preparing -= 1
                self._supply.conclude(entry, (), 0, _explained(entry, error))
            return
        ongoing = _Ongoing(entry, read)
        with self._lock:
            self._preparing -= 1
            self._staged.extend((ongoing, step) for step in read.steps)
            if not read.steps:
                self._finished.append(ongoing)
            first = None if self._closed else self._begin_staged()
            if first is None:
                return
            if self._place_to_begin() is not None:
                self.notify()
        self._read_on(*first)

    def _read_on(self, ongoing: _Ongoing[WantedT], step: Step) -> None:
        """Runs a step, then whatever is staged."""
        while True:
            ongoing.run(step)
            with self._lock:
                ongoing.left -= 1
                if not ongoing.left:
                    self._finished.append(ongoing)
                self._running.remove(ongoing.entry)
                following = None if self._closed else self._begin_staged()
                if following is None:
                    return
                ongoing, step = following
                self.notify()

    def _conclude(self, ongoing: _Ongoing[WantedT]) -> None:
        entry = ongoing.entry
        tensors: tuple[Any, ...] = ()
        nbytes, problem = 0, ongoing.error
        try:
            if problem is None:
                nbytes = ongoing.read.finish()
                tensors = entry.slot.views(entry.layout)
        except Exception as error:
            problem, nbytes = error, 0
        finally:
            ongoing.read.close()
        with self._lock:
            self._supply.conclude(entry, tensors, nbytes, None if problem is None else _explained(entry, problem))

    def _abandon(self) -> None:
        """Closes the files of what nobody will read or conclude any more."""
        while self._staged:
            ongoing, _ = self._staged.popleft()
            ongoing.left -= 1
            if not ongoing.left:
                self._finished.append(ongoing)
        while self._finished:
            self._finished.popleft().read.close()


def _explained(entry: Wanted, error: BaseException) -> CoterieError:
    if isinstance(error, CoterieError):
        return error
    problem = ReadError(f"Expert {entry.key} could not be read: {error!r}.", key=entry.key)
    problem.__cause__ = error
    return problem
