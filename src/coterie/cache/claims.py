"""What is resident or on its way, and who has a claim to it."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

import torch

from coterie.cache.cause import Cause
from coterie.cache.consumer import Consumer
from coterie.cache.slots import Slot
from coterie.errors import CoterieError
from coterie.spec import ExpertKey, RecordLayout


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
        cold: Whether nobody but prefills has asked for it so far.
        cause: Why it is read.
        unclaimed: Whether it is read for no claim and nobody has asked for it since.
        reader: The claim that it is read for, if any.
        asked: The claims that waited for it when its read began.
        unclaimed_nbytes: Bytes that were read for it before a claim asked for it, if that was announced.
    """

    __slots__ = (
        "asked", "cause", "cold", "holders", "key", "layout", "loaded", "reader", "slot", "tensors", "unclaimed",
        "unclaimed_nbytes",
    )  # fmt: skip

    def __init__(
        self, key: ExpertKey, layout: RecordLayout, slot: Slot, *, cause: Cause, reader: Claim | None, cold: bool
    ) -> None:
        self.key = key
        self.layout = layout
        self.slot = slot
        self.tensors: tuple[torch.Tensor, ...] = ()
        self.holders: set[Claim] = set()
        self.loaded = False
        self.cold = cold
        self.cause = cause
        self.unclaimed = cause is not Cause.DEMAND
        self.reader = reader
        self.asked: frozenset[Claim] = frozenset()
        self.unclaimed_nbytes = 0

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
        ahead: Keys read for this claim and not yet yielded.
        waiting_since: Ticket drawn when its consumer began to wait, or None.
    """

    __slots__ = (
        "admitted", "ahead", "bytes_read", "closed", "consumed", "consumer", "current", "error", "evictions", "hits",
        "keys", "layouts", "ordered", "position", "prefill", "reading", "ready", "todo", "together", "upcoming",
        "wait_s", "waiting_since",
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
    ) -> None:
        self.keys = keys
        self.layouts = dict(zip(keys, layouts, strict=True))
        self.ordered = ordered
        self.together = together
        self.prefill = prefill
        self.consumer = consumer
        self.upcoming = upcoming
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
