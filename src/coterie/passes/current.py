"""The forward pass that a thread is in, and what is kept for as long as it lasts: the one place for both.

A watch on a component's forward makes a :class:`Pass` (:mod:`coterie.passes.clock`); whoever works in it asks
:func:`current`. What a collaborator keeps for the duration of the pass is its :meth:`Pass.state`, which goes with the
pass however that ends. What it keeps from one pass of a thread to the next is :func:`carried`; from one pass of a
request to the next, its :meth:`Request.state`.

Whoever begins a pass may say what it is (:class:`Stated`). Where nobody does, the shapes tell.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from weakref import WeakKeyDictionary

from coterie.cache import Consumer
from coterie.native import PassMemory
from coterie.passes.limit import ExpertLimit
from coterie.passes.losses import LossMeter, RowLosses
from coterie.spec import Event, Observer, Phase

_Made = TypeVar("_Made")


class Stopped(Exception):
    """Ends a forward pass because nobody wants what it computes; whoever began it does not pass this on."""


class EncodedAhead(Exception):
    """Ends a forward pass that has come to an encoder; it is to be begun anew. Whoever began it does not pass it on."""


class Request:
    """Whose passes follow one another, whatever else their thread computes meanwhile.

    Args:
        domain: Name of what it is about, for profiles; None where nobody said.

    Attributes:
        domain: That given.
        before_layer: Called before each layer's experts are computed, in passes that are of nobody else. What it raises
            ends the pass, and no lease is open then. None where nobody wants to be asked.
        encodings: What encoders were given, and what they made of it: its passes end with each encoder that they come
            to, and find that when they are begun anew. None where they do not end.
    """

    __slots__ = ("__weakref__", "_states", "before_layer", "domain", "encodings")

    def __init__(self, domain: str | None = None) -> None:
        self.domain = domain
        self.before_layer: Callable[[], None] | None = None
        self.encodings: list[tuple[Any, Any]] | None = None
        self._states: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def end(self) -> None:
        """Has its passes end at the next layer, that which is going on as well; called in whatever thread."""
        self.before_layer = _stop

    def state(self, owner: object, make: Callable[[], _Made]) -> _Made:
        """What ``owner`` keeps from one pass of it to the next, as long as both live; it must not refer to it.

        Args:
            owner: Who keeps it.
            make: Makes it when it is first asked for.
        """
        found: _Made | None = self._states.get(owner)
        if found is None:
            found = self._states[owner] = make()
        return found

    def drop(self, owner: object) -> None:
        """Forgets what ``owner`` kept."""
        self._states.pop(owner, None)


def _stop() -> None:
    raise Stopped


class Row(NamedTuple):
    """A sequence in a pass.

    Attributes:
        request: Whose it is; None where nobody said.
        position: Tokens of it before the first of this pass.
    """

    request: Request | None
    position: int


class Pass:
    """A forward pass of one component, current in its thread inside the context.

    Where nothing is watched, a thread is in a pass as well: one with number -1, which nobody is told of and which lasts
    as long as the thread.

    Args:
        number: Counted by component, from 0.
        component: The component; "" where nothing is watched.
        phase: What kind of pass it is.
        batch: Sequences.
        tokens: New tokens of each.
        cached: Tokens of each before them; of the longest, where they differ.
        rows: The sequences, one after the other; as the numbers say, if they are not given.
        observers: Who is told; those that are added to it meanwhile, too.
        limit: Leaves out some of the experts that routers choose; None where nobody asked for that.
        watch: Who made it.
        consumer: As whom the cache is asked for experts; that of the thread, if it is not given.
        states: What collaborators keep, where that outlasts the pass.

    Attributes:
        number: That given.
        component: That given.
        phase: That given.
        decode: Whether that is ``decode``.
        batch: That given.
        tokens: That given.
        cached: That given.
        rows: The sequences, one after the other.
        request: Whose all of them are; None where they are of several, or nobody said.
        observers: Those given.
        limit: That given.
        watch: That given.
        consumer: As whom the cache is asked for experts.
        contributions: Whether an observer wants to know what experts contribute.
        losses: Measures how well tokens were predicted; None where no observer wants to know.
        outer: The pass that this one began in; None before it has begun, and for that of a thread.
    """

    __slots__ = (
        "_memory", "_pending", "_states", "batch", "cached", "component", "consumer", "contributions", "decode",
        "limit", "losses", "number", "observers", "outer", "phase", "request", "rows", "tokens", "watch",
    )  # fmt: skip

    def __init__(
        self,
        *,
        number: int = -1,
        component: str = "",
        phase: Phase = "prefill",
        batch: int = 0,
        tokens: int = 0,
        cached: int = 0,
        rows: tuple[Row, ...] | None = None,
        observers: Sequence[Observer] = (),
        limit: ExpertLimit | None = None,
        watch: object = None,
        consumer: Consumer | None = None,
        states: MutableMapping[Any, Any] | None = None,
    ) -> None:
        self.number, self.component = number, component
        self.phase, self.decode = phase, phase == "decode"
        self.batch, self.tokens, self.cached = batch, tokens, cached
        self.rows = (Row(None, cached),) * batch if rows is None else rows
        self.request = _only_request(self.rows)
        self.observers, self.limit, self.watch = observers, limit, watch
        self.consumer = consumer or _thread.consumer
        self.contributions = any(getattr(observer, "wants_contributions", False) for observer in observers)
        self.losses: LossMeter | RowLosses | None = None
        self.outer: Pass | None = None
        self._memory: PassMemory | None = None
        # What is to be told when a decode step is over; None outside one.
        self._pending: list[Callable[[], Event | None]] | None = None
        self._states: MutableMapping[Any, Any] = {} if states is None else states

    @property
    def memory(self) -> PassMemory:
        """Working memory that layers use one after the other, gone when the pass is over."""
        if self.number < 0:
            return PassMemory()
        if self._memory is None:
            self._memory = PassMemory()
        return self._memory

    def free_memory(self) -> None:
        """Lets go of :attr:`memory`."""
        self._memory = None

    def state(self, owner: object, make: Callable[[], _Made]) -> _Made:
        """What ``owner`` keeps for the duration of the pass; made with ``make`` when it first asks.

        Where nothing is watched it stays as long as its owner, and must not refer to it.
        """
        found: _Made | None = self._states.get(owner)
        if found is None:
            found = self._states[owner] = make()
        return found

    def tell(self, make: Callable[[], Event | None]) -> None:
        """Tells observers an event; in a decode step, when that is over.

        Between two layers of a large model the processor's caches forget everything: making and telling an event there
        takes ten times as long as telling all of a step one after the other.

        Args:
            make: Makes the event; None if there is nothing to be told.
        """
        if self._pending is None:
            self.announce(make())
        else:
            self._pending.append(make)

    def announce(self, event: Event | None) -> None:
        """Tells observers an event now."""
        if event is not None:
            for observer in tuple(self.observers):
                observer.on_event(event)

    def hold_back(self) -> None:
        """From now on :meth:`tell` waits for :meth:`tell_held_back`."""
        self._pending = []

    def tell_held_back(self) -> None:
        """Tells what has been waiting, in order."""
        pending, self._pending = self._pending, None
        for make in pending or ():
            self.announce(make())

    def __enter__(self) -> Self:
        self.outer, _thread.now = _thread.now, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.outer is not None:
            _thread.now, self.outer = self.outer, None
        # An exception's traceback may keep the pass, and for long.
        self._memory = self._pending = None
        self._states = {}


def _only_request(rows: tuple[Row, ...]) -> Request | None:
    first = rows[0].request if rows else None
    return first if len(rows) == 1 or all(row.request is first for row in rows) else None


class _Thread(threading.local):
    def __init__(self) -> None:
        self.unwatched: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self.consumer = Consumer()
        self.now = Pass(consumer=self.consumer, states=self.unwatched)
        self.stated: Stated | None = None
        self.request = Request()
        self.carried: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


_thread = _Thread()


def current(component: str | None = None) -> Pass:
    """The innermost forward pass that this thread is in.

    Args:
        component: The innermost of this component's; without one, that of the thread.
    """
    now = _thread.now
    if component is not None:
        while now.component != component and now.outer is not None:
            now = now.outer
    return now


def unwatched(component: str, observers: Sequence[Observer], limit: ExpertLimit | None) -> Pass:
    """What a component is in where its layers are called outside of a pass of it: not counted, but told of."""
    return Pass(component=component, observers=observers, limit=limit, states=_thread.unwatched)


def carried(owner: object, make: Callable[[], _Made]) -> _Made:
    """What ``owner`` keeps in this thread from one pass to the next, as long as it lives; it must not refer to it."""
    found: _Made | None = _thread.carried.get(owner)
    if found is None:
        found = _thread.carried[owner] = make()
    return found


def current_request() -> Request:
    """Whose pass this thread is in, or begins; where nobody says whose it is, all of a thread's are one's."""
    said = _thread.stated
    return _thread.request if said is None or said.request is None else said.request


class Stated:
    """Inside, what forward passes are that this thread begins is said, whatever their shapes tell.

    Without it a pass is taken for a decode step if it has one new token after others: right for one sequence, wrong
    for a step of several requests at once.

    Args:
        request: Whose passes they are; None for those of several, or where that is not known.
        phase: What kind of pass each is; None to tell by its shapes.
        rows: The sequences of each; None to tell by its shapes. A pass of another number of them tells by its shapes.
    """

    __slots__ = ("_before", "phase", "request", "rows")

    def __init__(
        self, request: Request | None = None, *, phase: Phase | None = None, rows: tuple[Row, ...] | None = None
    ) -> None:
        self.request, self.phase, self.rows = request, phase, rows
        self._before: Stated | None = None

    def __enter__(self) -> Self:
        self._before, _thread.stated = _thread.stated, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _thread.stated = self._before


def phase_or(rule: Phase) -> Phase:
    """The phase that was stated for the pass that begins, else what the shapes tell."""
    said = _thread.stated
    return rule if said is None or said.phase is None else said.phase


def rows_or(batch: int, cached: int) -> tuple[Row, ...]:
    """The sequences that were stated for the pass that begins, else what the shapes tell.

    Args:
        batch: Sequences.
        cached: Tokens of each before those of the pass.
    """
    said = _thread.stated
    if said is None:
        return (Row(None, cached),) * batch
    if said.rows is not None and len(said.rows) == batch:
        return said.rows
    return (Row(said.request, cached),) * batch
