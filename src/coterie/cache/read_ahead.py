"""What is read before it is asked for: when nothing else is to be read, and dropped when it is too late."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from coterie.cache.cause import Cause
from coterie.cache.claims import Entry
from coterie.cache.consumer import Consumer
from coterie.cache.predictions import Prediction, Predictions
from coterie.cache.residency import Residency
from coterie.cache.statistics import Counters
from coterie.spec import ExpertKey

_NEAR = 0.75
"""Share of the room that an announcement protects at most: the rest is there for others, whatever becomes of it."""


class ReadAhead:
    """Chooses what is worth reading ahead; guarded by the cache's lock.

    There are three kinds. What is *predicted* of a consumer is for one of the next things that it asks for, and what is
    needed soonest is read first. With that request, whatever it is, the prediction is over, and what has not been
    started by then is dropped. So is what a later prediction of the same request does not confirm. What a prefill
    *announces* is a prediction that is as good as certain: it does not wait for the disk to be idle, only until all
    that is demanded is being read. What is *worth having* comes last, and takes nobody's place who has been of use.

    Args:
        residency: What is in memory.
        predictions: What is predicted and worth having.
        counters: Where predictions are counted.
    """

    def __init__(self, residency: Residency, predictions: Predictions, counters: Counters) -> None:
        self._residency = residency
        self._predictions = predictions
        self._counters = counters

    def predict(self, consumer: Consumer, keys: Sequence[ExpertKey], *, after: int = 0) -> None:
        """What a consumer will probably ask for after so many other requests, likeliest first; protected until then."""
        absent = [key for key in keys if self._residency.find(key) is None]
        before = self._predictions.make(consumer, Prediction(keys, absent, announced=False), after=after)
        known = frozenset() if before is None else before.keys
        self._counters.predicted += sum(key not in known for key in absent)

    def announce(self, consumer: Consumer, keys: Iterable[ExpertKey]) -> None:
        """What a consumer in a prefill asks for next, soonest first: as much of it as a prefill may have read ahead."""
        residency = self._residency
        if residency.all_resident:
            return
        near: list[ExpertKey] = []
        absent: list[ExpertKey] = []
        ahead, room = 0, _NEAR * residency.room
        for key in keys:
            if not residency.has(key):
                continue
            near.append(key)
            entry = residency.find(key)
            if entry is None:
                absent.append(key)
            ahead += entry is None or entry.announced
            nbytes = residency.slot_nbytes(key)
            room -= nbytes
            if ahead >= residency.prefill_depth(nbytes) or room < nbytes:
                break
        if absent:
            self._predictions.over(consumer)
            self._predictions.make(consumer, Prediction(near, absent, announced=True))

    def take_announced(self) -> Entry | None:
        """The next announced one to read, with a slot; None if there is none, or no room yet for a prefill."""
        residency = self._residency
        for prediction in self._predictions.all():
            keys = prediction.todo
            if not prediction.announced:
                continue
            while keys and residency.find(keys[0]) is not None:
                keys.popleft()
            if not keys:
                continue
            entry = residency.reserve_ahead(keys[0], residency.layout(keys[0]), Cause.ANNOUNCEMENT)
            if entry is not None:
                keys.popleft()
                return entry
        return None

    def take(self, *, warm: bool) -> Entry | None:
        """The next one to read, with a slot; None if there is none, or no room that a prediction may take.

        Args:
            warm: Whether it may be one that is only worth having.
        """
        for prediction in self._predictions.all():
            entry = None if prediction.announced else self._first(prediction.todo)
            if entry is not None:
                return entry
        return self._first_warm() if warm else None

    def _first(self, keys: deque[ExpertKey]) -> Entry | None:
        residency = self._residency
        while keys:
            key = keys.popleft()
            if residency.find(key) is None:
                entry = residency.reserve_ahead(key, residency.layout(key), Cause.PREDICTION)
                if entry is not None:
                    return entry
        return None

    def _first_warm(self) -> Entry | None:
        residency, todo = self._residency, self._predictions.to_warm
        while todo:
            key = todo.popleft()
            if residency.find(key) is not None:
                continue
            entry = residency.reserve_warm(key)
            if entry is not None:
                return entry
            if not self._predictions.pins(key):
                # What comes after it is worth less, and finds no room either.
                todo.clear()
        return None
