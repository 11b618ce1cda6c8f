"""What is read next, what is being read, and what becomes of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from coterie.cache.bank_view import Holds
from coterie.cache.cause import Cause
from coterie.cache.claims import Claim, Entry, OpenClaims, Waiters
from coterie.cache.predictions import Predictions
from coterie.cache.read_ahead import ReadAhead
from coterie.cache.residency import Residency
from coterie.cache.statistics import Counters
from coterie.errors import CoterieError


class Outstanding:
    """Keeps apart what is read because it was asked for, and what is read because it might be; guarded by the lock.

    Args:
        clock: Gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since = clock()
        self._demanded_s = 0.0
        self._ahead_s = 0.0
        self.demanded: set[Entry] = set()
        self.ahead: set[Entry] = set()

    def begin(self, entry: Entry) -> None:
        """A read begins; it is ahead of any request if nobody has asked for the entry."""
        self._advance()
        (self.ahead if entry.unclaimed else self.demanded).add(entry)

    def demand(self, entry: Entry) -> None:
        """Somebody asked for an entry that may be under way ahead of that: from now on it is waited for."""
        if entry in self.ahead:
            self._advance()
            self.ahead.discard(entry)
            self.demanded.add(entry)

    def end(self, entry: Entry) -> None:
        """A read has ended."""
        self._advance()
        self.ahead.discard(entry)
        self.demanded.discard(entry)

    def seconds(self) -> tuple[float, float]:
        """Time with a demanded read under way, and time with none but those ahead of any request, until now."""
        self._advance()
        return self._demanded_s, self._ahead_s

    def _advance(self) -> None:
        now = self._clock()
        if self.demanded:
            self._demanded_s += now - self._since
        elif self.ahead:
            self._ahead_s += now - self._since
        self._since = now


class ReadOrder:
    """Chooses what the reading threads read, and gives it to the claims that wait for it: it is their supply.

    First comes what claims ask for, the most urgent first; then what prefills have announced; then what is predicted,
    what is needed soonest first; then what is worth having. Predictions are prepared while something that was asked for
    is being read, and begin when it is not. Guarded by the cache's lock.

    Args:
        residency: What is in memory.
        holds: Where hits are noted.
        predictions: What is predicted and worth having.
        claims: The leases that are open.
        counters: Counts what is read.
        waiters: Consumers that wait.
        at_once: Reads outstanding at most.
        notify: Has a reading thread look.
        on_choice: Called after each choice.

    Attributes:
        ahead: Chooses among what nobody has asked for yet.
        outstanding: The reads that are under way.
        failure: Why a reading thread came to its end, if one has.
    """

    def __init__(
        self,
        residency: Residency,
        holds: Holds,
        predictions: Predictions,
        claims: OpenClaims,
        counters: Counters,
        waiters: Waiters,
        *,
        at_once: int,
        notify: Callable[[], None],
        on_choice: Callable[[], None],
    ) -> None:
        self._residency = residency
        self._holds = holds
        self._predictions = predictions
        self._claims = claims
        self._counters = counters
        self._waiters = waiters
        self._at_once = at_once
        self._notify = notify
        self._on_choice = on_choice
        self.ahead = ReadAhead(residency, predictions, counters)
        self.outstanding = Outstanding()
        # Read without success before those who wait for them had asked: they are read once more.
        self._again: deque[Entry] = deque()
        self.failure: BaseException | None = None

    def settle(self) -> None:
        """Tells the policy what it has not been told about yet."""
        self._residency.settle()

    def next_entry(self) -> Entry | None:
        """What to read next: for a claim, what was announced, or a prediction."""
        entry = self._failed() or self._demanded()
        if entry is None and not self._predictions.idle:
            entry = self._announced() or self._predicted()
        if entry is not None:
            entry.asked = frozenset(entry.holders)
            self.outstanding.begin(entry)
        self._on_choice()
        return entry

    def has_demand(self) -> bool:
        """Whether a claim wants something read, or a prediction is there."""
        if self._is_demanded():
            return True
        predictions = self._predictions
        if predictions.idle or not predictions.any_to_read:
            return False
        if predictions.any_announced or (self._may_warm and predictions.to_warm):
            return True
        return self._may_predict and predictions.any_predicted

    def is_wanted(self, entry: Entry) -> bool:
        """Whether what was prepared is predicted still, or worth having whoever asks."""
        return entry.cause is Cause.WARMING or bool(entry.holders) or self._predictions.protects(entry.key)

    def give_up(self, entry: Entry) -> None:
        """A read that was prepared does not begin: what it was prepared for was disproved."""
        self.outstanding.end(entry)
        self._counters.issued[entry.cause] -= 1
        self._residency.abandon(entry)
        self._waiters.wake_all()

    def conclude(
        self, entry: Entry, tensors: tuple[torch.Tensor, ...], nbytes: int, error: CoterieError | None
    ) -> None:
        """Gives consumers an entry that has been read, or the reason why it could not be."""
        self.outstanding.end(entry)
        self._publish(entry, tensors, nbytes, error)
        self._waiters.wake_all()

    def fail(self, error: BaseException) -> None:
        """Has every consumer raise: a reading thread is gone."""
        self.failure = error
        self._waiters.wake_all()

    def wake(self) -> None:
        """Has a reading thread look, if there is something that it must not put off."""
        if self._is_demanded() or (not self._predictions.idle and self._predictions.any_announced):
            self._notify()

    def wake_if_worth_it(self) -> None:
        """Has a reading thread look, if it would find something to prepare.

        One that finds nothing has taken a processor from those who compute, and whoever ends a read looks by itself.
        """
        if self.has_demand():
            self._notify()

    @property
    def is_busy(self) -> bool:
        """Whether something is read, or is to be read, that somebody has asked for."""
        return bool(self.outstanding.demanded) or self._is_demanded()

    def _is_demanded(self) -> bool:
        return bool(self._again) or self._claims.want_reads

    def _failed(self) -> Entry | None:
        """What is read once more; nobody may want it any more."""
        while self._again:
            entry = self._again.popleft()
            if entry.holders:
                return entry
            self._residency.abandon(entry)
            self._waiters.wake_all()
        return None

    def _demanded(self) -> Entry | None:
        for claim in self._claims.by_urgency(self._residency.prefill_depth):
            while claim.todo:
                key = claim.todo[0]
                entry = self._residency.find(key)
                read = entry is None
                if entry is None:
                    others = [other for other in self._claims if other is not claim]
                    entry = self._residency.reserve(key, claim.layouts[key], claim, others)
                    if entry is None:
                        # Nobody behind it may take the room that it waits for.
                        return None
                    entry.cold = claim.prefill and not (key in claim.keeps or self._predictions.is_worth_having(key))
                    claim.ahead.add(key)
                self._grant(claim, entry)
                if read:
                    return entry
        return None

    def _grant(self, claim: Claim, entry: Entry) -> None:
        claim.todo.popleft()
        claim.join(entry)
        if claim not in self._claims.open:
            # Its lease was lost, and collected on this thread meanwhile.
            entry.holders.discard(claim)
            claim.todo.clear()
            return
        if entry.loaded and not claim.prefill and self._holds.uses_matter:
            self._holds.note([entry])
        self.ask(claim, entry)
        if entry.loaded or (not claim.todo and claim.together):
            self._waiters.wake_all()
        if not claim.todo:
            self._claims.leave_queue(claim)

    def ask(self, claim: Claim, entry: Entry) -> None:
        """A claim asks for an entry that may have been there, or on its way, for another reason."""
        if entry.announced:
            claim.bytes_read += entry.unclaimed_nbytes
            entry.unclaimed_nbytes = 0
            if not entry.loaded:
                entry.reader = claim
        self._residency.note_use(entry)
        self.outstanding.demand(entry)

    def _announced(self) -> Entry | None:
        """What a prefill will ask for, once all that is asked for is being read; in slots that prefills have used."""
        if not self._predictions.any_announced or self._is_demanded():
            return None
        if self._residency.is_full:
            for claim in self._claims:
                if claim.prefill:
                    claim.relinquish()
        return self.ahead.take_announced()

    def _predicted(self) -> Entry | None:
        # Room that somebody waits for is not for predictions.
        if self._is_demanded() or not self._may_predict:
            return None
        return self.ahead.take(warm=self._may_warm)

    @property
    def _most_ahead(self) -> int:
        """Reads that may be under way ahead of any request: one stays free for whoever comes next."""
        return max(1, self._at_once - 1)

    @property
    def _may_warm(self) -> bool:
        """Whether what is worth having may be read: it comes in the order of its worth, so none is prepared."""
        return not self.outstanding.demanded and len(self.outstanding.ahead) < self._most_ahead

    @property
    def _may_predict(self) -> bool:
        """Whether there is not one that is prepared beside those that may be under way."""
        return len(self.outstanding.ahead) <= self._most_ahead

    def _publish(
        self, entry: Entry, tensors: tuple[torch.Tensor, ...], nbytes: int, error: CoterieError | None
    ) -> None:
        waiting = [holder for holder in list(entry.holders) if isinstance(holder, Claim)]
        self._counters.nbytes[entry.cause] += nbytes
        if entry.reader is not None:
            entry.reader.bytes_read += nbytes
            entry.reader = None
        elif entry.announced:
            entry.unclaimed_nbytes = nbytes
        if error is not None:
            self._refuse(entry, waiting, error)
            return
        self._residency.complete(entry, tensors)
        for claim in waiting:
            claim.arrive(entry)

    def _refuse(self, entry: Entry, waiting: Sequence[Claim], error: CoterieError) -> None:
        """A read has failed: for who had asked when it began. Who came later is owed a read of its own."""
        for claim in waiting:
            if claim in entry.asked:
                claim.fail(entry.key, error)
                entry.holders.discard(claim)
        later = [claim for claim in waiting if claim not in entry.asked]
        if not later:
            self._residency.abandon(entry)
            return
        entry.reader, entry.cause = later[0], Cause.DEMAND
        self._again.append(entry)
        self._notify()
