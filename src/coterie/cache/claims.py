"""What is resident or on its way, and who has a claim to it: the leases that are open, and who waits for theirs."""

from __future__ import annotations

import copy
import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch

from coterie.cache.arena import Slot, SlotArena
from coterie.cache.cause import Cause
from coterie.cache.consumer import Consumer
from coterie.errors import CoterieError
from coterie.eviction import PromptUse
from coterie.spec import ExpertKey, RecordLayout

Tensors = tuple[torch.Tensor, ...]
"""The fields of one expert in its layout's order, as views into a slot. They must only be read."""


class Entry:
    """An expert that has a slot.

    Attributes:
        key: Which expert.
        layout: How its record is laid out.
        slot: Where it is.
        tensors: Its fields, valid once ``loaded``.
        holders: The claims for which it must stay. A set instead of a count: giving up twice, or after an interrupt
            between two steps, does no harm.
        loaded: Whether the record is complete.
        cause: Why it is read.
        unclaimed: Whether it is read for no claim and nobody has asked for it since.
        reader: The claim that it is read for, if any.
        asked: The claims that waited for it when its read began.
        unclaimed_nbytes: Bytes that were read for it before a claim asked for it, if that was announced.

    Args:
        colds: Those that are cold, of a cache.
    """

    __slots__ = (
        "_colds", "asked", "cause", "holders", "key", "layout", "loaded", "reader", "slot", "tensors", "unclaimed",
        "unclaimed_nbytes",
    )  # fmt: skip

    def __init__(
        self,
        key: ExpertKey,
        layout: RecordLayout,
        slot: Slot,
        *,
        cause: Cause,
        reader: Claim | None,
        cold: bool,
        colds: set[Entry],
    ) -> None:
        self.key = key
        self.layout = layout
        self.slot = slot
        self.tensors: Tensors = ()
        self.holders: set[Claim] = set()
        self.loaded = False
        self._colds = colds
        self.cold = cold
        self.cause = cause
        self.unclaimed = cause is not Cause.DEMAND
        self.reader = reader
        self.asked: frozenset[Claim] = frozenset()
        self.unclaimed_nbytes = 0

    @property
    def cold(self) -> bool:
        """Whether nobody but prefills has asked for it so far, and none of them as decoding would."""
        return self in self._colds

    @cold.setter
    def cold(self, cold: bool) -> None:
        if cold:
            self._colds.add(self)
        else:
            self._colds.discard(self)

    @property
    def can_wait(self) -> bool:
        """Whether it is read only because somebody might ask for it."""
        return self.unclaimed and self.cause is not Cause.ANNOUNCEMENT

    @property
    def announced(self) -> bool:
        """Whether it is there, or comes, only because a prefill has announced it."""
        return self.unclaimed and self.cause is Cause.ANNOUNCEMENT


class Claim:
    """The state of one lease; guarded by the cache's lock.

    A key is in ``todo`` (needs a slot), then in ``reading``, then in ``ready``, then in ``current`` (yielded last),
    then in ``consumed``. From ``reading`` on, its entry is held.

    Attributes:
        keys: Distinct keys in the caller's order.
        ordered: Whether they are yielded in that order.
        together: Whether all must stay until the lease ends.
        prefill: Whether the lease is a prefill's.
        consumer: Whose it is.
        upcoming: What its consumer will most probably ask for next, soonest first.
        prompt: What the last tokens of a prefill use; None where nobody says.
        ahead: Keys read for this claim and not yet yielded.
        waiting_since: Ticket drawn when its consumer began to wait, or None.
    """

    __slots__ = (
        "admitted", "ahead", "bytes_read", "closed", "consumed", "consumer", "current", "error", "evictions", "hits",
        "keys", "layouts", "ordered", "position", "prefill", "prompt", "reading", "ready", "todo", "together",
        "upcoming", "wait_s", "waiting_since",
    )  # fmt: skip

    def __init__(
        self,
        keys: Sequence[ExpertKey],
        layouts: Sequence[RecordLayout],
        *,
        ordered: bool,
        together: bool,
        prefill: bool,
        consumer: Consumer,
        upcoming: Iterable[ExpertKey] = (),
        prompt: PromptUse[ExpertKey] | None = None,
    ) -> None:
        self.keys = keys
        self.layouts = dict(zip(keys, layouts, strict=True))
        self.ordered = ordered
        self.together = together
        self.prefill = prefill
        self.consumer = consumer
        self.upcoming = upcoming
        self.prompt = prompt
        self.todo: deque[ExpertKey] = deque()
        self.reading: set[ExpertKey] = set()
        self.ready: OrderedDict[ExpertKey, Entry] = OrderedDict()
        self.current: list[Entry] = []
        self.consumed: deque[Entry] = deque()
        self.ahead: set[ExpertKey] = set()
        self.position = 0
        self.admitted = False
        self.closed = False
        self.waiting_since: int | None = None
        self.error: CoterieError | None = None
        self.hits = 0
        self.bytes_read = 0
        self.wait_s = 0.0
        self.evictions = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the slots of all its members."""
        return sum(SlotArena.slot_nbytes(layout.nbytes) for layout in self.layouts.values())

    @property
    def keeps(self) -> Collection[ExpertKey]:
        """What is as good as asked for by decoding, though a prefill asks for it."""
        return () if self.prompt is None else self.prompt.kept

    @property
    def finished(self) -> bool:
        """Whether every key has been yielded."""
        return self.position == len(self.keys)

    @property
    def starving(self) -> bool:
        """Whether its consumer waits for something that has not even got a slot."""
        if self.waiting_since is None or not self.todo:
            return False
        if self.ordered:
            return self.keys[self.position] == self.todo[0]
        return not self.reading and not self.ready

    def join(self, entry: Entry) -> None:
        """Holds an entry that is resident or on its way."""
        entry.holders.add(self)
        if not self.prefill:
            entry.cold = False
        if entry.loaded:
            self.ready[entry.key] = entry
        else:
            self.reading.add(entry.key)

    def arrive(self, entry: Entry) -> None:
        """An entry that it waited for has been read."""
        self.reading.discard(entry.key)
        self.ready[entry.key] = entry

    def fail(self, key: ExpertKey, error: CoterieError) -> None:
        """A read that it waited for has failed. Every consumer raises an exception object of its own."""
        self.reading.discard(key)
        self.ahead.discard(key)
        if self.error is None:
            self.error = copy.copy(error)
            self.error.__cause__ = error.__cause__

    def take_ready(self, nbytes: int) -> list[Entry]:
        """Makes the entries to yield next the current ones: one if any is there, and more up to ``nbytes``."""
        while self.ready:
            entry = self.ready.get(self.keys[self.position]) if self.ordered else next(iter(self.ready.values()))
            if entry is None or (self.current and entry.slot.nbytes > nbytes):
                break
            nbytes -= entry.slot.nbytes
            del self.ready[entry.key]
            self.current.append(entry)
            self.position += 1
            self.ahead.discard(entry.key)
        return self.current

    def retire_current(self) -> list[Entry]:
        """The consumer has come back for more: returns what it was given last, which is consumed when it says so."""
        retired, self.current = self.current, []
        return retired

    def relinquish(self) -> None:
        """Lets go of what has been consumed."""
        while self.consumed:
            self.consumed.popleft().holders.discard(self)

    def revoke(self) -> None:
        """Lets go of what is ready but not its turn, so that what is its turn can get a slot; it is asked for again."""
        turn = self.keys[self.position]
        revoked = {key for key in self.ready if key != turn}
        for key in revoked:
            self.ready.pop(key).holders.discard(self)
        waiting = revoked.union(self.todo)
        self.todo = deque(key for key in self.keys[self.position :] if key in waiting)


class OpenClaims:
    """The claims of the leases that are open; guarded by the cache's lock.

    Of the claims whose members must stay together and that lack slots only the first in a queue may hold while it waits
    for more.

    Args:
        at_once: Reads outstanding at most.

    Attributes:
        open: The claims, oldest first. It is changed here alone.
    """

    def __init__(self, *, at_once: int) -> None:
        self._at_once = at_once
        self.open: dict[Claim, None] = {}
        self._queue: deque[Claim] = deque()
        self._tickets = itertools.count()

    def __iter__(self) -> Iterator[Claim]:
        # A copy, because collecting a lost lease can change the table at any moment; a list, because a tuple is made
        # between looking at the table's size and going through it, and what is made can have garbage collected.
        return iter(list(self.open))

    @property
    def queued(self) -> int:
        """Claims in the queue."""
        return len(self._queue)

    @property
    def needed_nbytes(self) -> int:
        """Bytes that there must be so that each claim in the queue can have all its members together."""
        return max((claim.nbytes for claim in self._queue), default=0)

    @property
    def want_reads(self) -> bool:
        """Whether any of them still needs slots."""
        return any(claim.todo for claim in self)

    def add(self, claim: Claim) -> None:
        """A lease is opened."""
        self.open[claim] = None

    def enqueue(self, claim: Claim) -> bool:
        """A claim that must have all its members together takes its turn; returns whether that has come."""
        self._queue.append(claim)
        return self.is_first(claim)

    def is_first(self, claim: Claim) -> bool:
        """Whether it is the turn of a claim that is in the queue."""
        return self._queue[0] is claim

    def leave_queue(self, claim: Claim) -> bool:
        """A claim has all its slots, or needs them no more; returns whether it was in the queue."""
        if claim not in self._queue:
            return False
        self._queue.remove(claim)
        return True

    def drop(self, claim: Claim) -> None:
        """A lease is closed. Harmless when repeated."""
        self.leave_queue(claim)
        self.open.pop(claim, None)

    def has_one_of(self, consumer: Consumer) -> bool:
        """Whether a consumer has a lease open."""
        return any(claim.consumer is consumer for claim in self)

    def begin_waiting(self, claim: Claim) -> None:
        """A claim's consumer waits, from now on if it has not before."""
        if claim.waiting_since is None:
            claim.waiting_since = next(self._tickets)

    def by_urgency(self, prefill_depth: Callable[[int], int]) -> list[Claim]:
        """Those that may have something read now, most urgent first.

        Args:
            prefill_depth: Records of so many bytes that a prefill may have read ahead.
        """

        def urgency(claim: Claim) -> tuple[int, int]:
            if claim.together:
                return (0, 0)
            return (1, claim.waiting_since or 0) if claim.starving else (2, 0)

        able = [
            claim for claim in self if claim.todo and (claim.starving or self._may_read_ahead(claim, prefill_depth))
        ]
        able.sort(key=urgency)
        return able

    def _may_read_ahead(self, claim: Claim, prefill_depth: Callable[[int], int]) -> bool:
        if claim.together:
            return True
        if claim.prefill:
            return len(claim.ahead) < prefill_depth(claim.layouts[claim.todo[0]].nbytes)
        return len(claim.ahead) < 2 * self._at_once + 1


class Waiters:
    """Threads that wait for a change of what a lock guards, in a way that an interrupt cannot turn into another error.

    A thread looks at it with the lock, joins, lets go of the lock and waits; then it looks again. So nobody waits while
    it has a lock that it must give back. ``Condition.wait`` gives its lock up before it has made sure of taking it
    again: a KeyboardInterrupt that arrives in between leaves the ``with`` block around it to release a lock that its
    thread does not have, and becomes a RuntimeError.
    """

    def __init__(self) -> None:
        self._bars: list[threading.Lock] = []

    def join(self) -> threading.Lock:
        """A bar to wait at. Needs the lock; what changes from now on lifts it."""
        bar = threading.Lock()
        bar.acquire()
        self._bars.append(bar)
        return bar

    @staticmethod
    def wait(bar: threading.Lock) -> None:
        """Waits until the bar is lifted. Must not have the lock."""
        bar.acquire()

    def wake_all(self) -> None:
        """Lifts all bars. Needs the lock."""
        # In this order, and looking first: whoever was interrupted in the middle has lifted none for good, or twice.
        for bar in self._bars:
            if bar.locked():
                bar.release()
        self._bars.clear()
