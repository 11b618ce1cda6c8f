"""What will probably be asked for, and what is worth having whoever asks: such experts leave memory last."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable

from coterie.cache.consumer import Consumer
from coterie.cache.warm_set import WarmSet
from coterie.spec import ExpertKey


class Prediction:
    """What one consumer will probably ask for, with its next request or a later one.

    Attributes:
        keys: All of it, resident or not.
        todo: What is still to be read, soonest or likeliest first.
        announced: Whether the consumer has announced it itself, so that it is as good as certain.
    """

    __slots__ = ("announced", "keys", "todo")

    def __init__(self, keys: Iterable[ExpertKey], todo: Iterable[ExpertKey], *, announced: bool) -> None:
        self.keys = frozenset(keys)
        self.todo = deque(todo)
        self.announced = announced


class Predictions:
    """The predictions of all consumers, and the experts worth having; guarded by the cache's lock.

    A prediction is for one of the next things that a consumer asks for: with that, whatever it is, it is over. It is
    over, too, when nobody has the consumer any more.

    Attributes:
        made: The predictions of each consumer that has any: for its next request, for the one after it, and so on; None
            where there is none. It is changed here alone.
        pinned: What is pinned, resident or not; the same object until that changes.
        idle: Whether nothing is predicted or worth having: then there is nothing to ask for here.
    """

    def __init__(self) -> None:
        self.made: dict[weakref.ref[Consumer], list[Prediction | None]] = {}
        # Consumers that nobody has any more: Python tells of them at any moment, with the lock or without.
        self._gone: deque[weakref.ref[Consumer]] = deque()
        self._warm = WarmSet()
        # What is protected, set by set: victims are chosen far more often than this changes.
        self._protected: tuple[Collection[ExpertKey], ...] = ()
        self.pinned: frozenset[ExpertKey] = self._warm.pinned
        self.idle = True

    @property
    def any_to_read(self) -> bool:
        """Whether something is to be read."""
        return bool(self._warm.todo) or self.any_predicted

    @property
    def any_predicted(self) -> bool:
        """Whether something is to be read that a consumer will probably ask for."""
        return any(one.todo for one in self.all())

    def all(self) -> list[Prediction]:
        """What is predicted, soonest first and then by how long the consumer has had any, in a list of its own."""
        while self._gone:
            self.made.pop(self._gone.popleft(), None)
            self._changed()
        lines = list(self.made.values())
        if len(lines) == 1:
            return [one for one in lines[0] if one is not None]
        return [one for nth in itertools.zip_longest(*lines) for one in nth if one is not None]

    @property
    def any_announced(self) -> bool:
        """Whether something that was announced is still to be read."""
        return any(one.announced and one.todo for one in self.all())

    def make(self, consumer: Consumer, prediction: Prediction, *, after: int = 0) -> Prediction | None:
        """A consumer has another prediction than before.

        Args:
            consumer: Whose.
            prediction: What it will probably ask for.
            after: Requests that it makes before.

        Returns:
            What was predicted of that request until now.
        """
        line = self.made.get(weakref.ref(consumer))
        if line is None:
            line = self.made[weakref.ref(consumer, self._gone.append)] = []
        line.extend([None] * (after + 1 - len(line)))
        before, line[after] = line[after], prediction
        self._changed()
        return before

    def asked(self, consumer: Consumer) -> None:
        """A consumer asks for something: what was predicted of this request is over, and the next one is the first."""
        line = self.made.get(weakref.ref(consumer))
        if line is None:
            return
        del line[0]
        if line:
            self._changed()
        else:
            self.over(consumer)

    def over(self, consumer: Consumer) -> None:
        """Nothing is predicted of a consumer any more."""
        if self.made.pop(weakref.ref(consumer), None) is not None:
            self._changed()

    def warm(
        self, keys: Iterable[ExpertKey], size_of: Callable[[ExpertKey], int], *, nbytes: int, pinned_nbytes: int
    ) -> None:
        """Other experts are worth having than before; see :meth:`WarmSet.replace`."""
        self._warm.replace(keys, size_of, nbytes=nbytes, pinned_nbytes=pinned_nbytes)
        self._changed()

    def keep(
        self, keys: Iterable[ExpertKey], size_of: Callable[[ExpertKey], int], *, nbytes: int, read: bool = True
    ) -> None:
        """Other experts are to stay than before; see :meth:`WarmSet.keep`."""
        self._warm.keep(keys, size_of, nbytes=nbytes, read=read)
        self._changed()

    @property
    def any_put_off(self) -> bool:
        """Whether the reading of something that is to stay was put off."""
        return bool(self._warm.put_off)

    @property
    def to_warm(self) -> deque[ExpertKey]:
        """What is worth having and still to be read, most valuable first."""
        return self._warm.todo

    def protects(self, key: ExpertKey, *, of: Consumer | None = None) -> bool:
        """Whether a key leaves only when nothing else can: it is predicted, or pinned.

        Args:
            key: The key.
            of: Only what is predicted of this consumer.
        """
        if of is None:
            return any(key in keys for keys in self._protected)
        own = self.made.get(weakref.ref(of), ())
        return self.pins(key) or any(one is not None and key in one.keys for one in own)

    def pins(self, key: ExpertKey) -> bool:
        """Whether a key leaves only when nothing else can, whatever is asked for."""
        return key in self._warm.pinned

    def is_worth_having(self, key: ExpertKey) -> bool:
        """Whether a key is one of those that are worth having."""
        return key in self._warm.members

    def clear(self) -> None:
        """Nothing is predicted or worth having any more."""
        self.made.clear()
        self._warm.clear()
        self._changed()

    def _changed(self) -> None:
        made = [one.keys for line in list(self.made.values()) for one in line if one is not None]
        sets: tuple[Collection[ExpertKey], ...] = (*made, self._warm.pinned)
        self._protected = tuple(keys for keys in sets if keys)
        self.pinned = self._warm.pinned
        self.idle = not (self.made or self._warm.members)
