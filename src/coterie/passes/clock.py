"""The watch on a component's forward: lets passes in, makes them current, and says when they begin and end."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from coterie.hf.caches import caches_in
from coterie.passes.admission import Admission
from coterie.passes.current import EncodedAhead, Pass, Request, current, current_request, phase_or, rows_or, unwatched
from coterie.passes.forward_call import CallReader, ForwardCall
from coterie.passes.forwards import Covering, Forward, install
from coterie.passes.limit import ExpertLimit
from coterie.passes.logits_room import LogitsRoom
from coterie.passes.losses import LossMeter, RowLosses
from coterie.passes.neighbours import process_neighbours
from coterie.spec import Observer, Phase, StepEnded, StepStarted


class StepClock:
    """Watches the forward passes of one component: counts them, lets them in, and tells of them.

    Attributes:
        component: Name of the component.
        tokens: Phase → tokens computed.
        max_context: Tokens (sequences × length) that the memory budget was made for; None for no limit.
        observers: Who is told; shared with the passes.
        limit: Leaves out some of the experts that routers choose, of passes that begin from now on; None where nobody
            asked for that.
        on_begin: All that are told the component when a pass of it begins, before it is let in.
    """

    def __init__(self, component: str, observers: list[Observer], admission: Admission | None = None) -> None:
        self.component = component
        self.max_context: int | None = None
        self.observers = observers
        self.limit: ExpertLimit | None = None
        self.on_begin: tuple[Callable[[str], None], ...] = ()
        self.tokens: dict[Phase, int] = {"prefill": 0, "decode": 0}
        self._numbers = itertools.count()
        self._admission = admission or Admission()
        self._makes_logits = False
        self._lock = threading.Lock()

    def now(self) -> Pass:
        """This thread's forward pass of the component; where it is in none, one that is not counted."""
        now = current()
        return now if now.watch is self else self._further_out()

    def _further_out(self) -> Pass:
        """As :meth:`now`, where the innermost pass is another component's, or nothing is watched."""
        now = current(self.component)
        return now if now.watch is self else unwatched(self.component, self.observers, self.limit)

    def provide(self, max_context: int | None, logits: LogitsRoom | None) -> None:
        """Says what the memory budget was made for: more is refused from now on.

        Args:
            max_context: Tokens (sequences × length); None for no limit.
            logits: What there is for logits; None where nothing bounds them, or none are made of a vocabulary.
        """
        self.max_context = max_context
        self._admission.logits = logits if self._makes_logits else None

    def lend(self, tokens: int) -> None:
        """Says how many more tokens caches may hold for now: their room is taken from something else.

        One pass may still have no more than the budget was made for.
        """
        self._admission.lent = tokens

    def install(self, module: nn.Module, *, makes_logits: bool = False) -> None:
        """Watches forward passes.

        Args:
            module: The component's outermost module.
            makes_logits: Whether logits of the whole vocabulary are made of what it computes.
        """
        self._makes_logits = makes_logits
        # A hook would do, at twice the price: with one, torch takes a slower way through every call.
        install(module, "pass", _Watched(self, module))

    def run(self, call: ForwardCall, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A forward pass, from its admission to its end.

        Args:
            call: What it is.
            forward: Computes it.
            args: What it is called with.
            kwargs: Likewise.
        """
        call.check_begin()
        for tell in self.on_begin:
            tell(self.component)
        most = self.max_context
        place = None if most is None else self._admission.enter(call, most)
        made: list[Any] = []
        with self._make(call) as now:
            try:
                self._begin(now, call)
                try:
                    result = _compute(now, forward, args, kwargs)
                except EncodedAhead:
                    self._count(now, -1)  # it is begun anew
                    raise
                if place is not None and not call.caches and call.uses_cache is not False:
                    made = caches_in([result])
            finally:
                now.free_memory()
                if place is not None:
                    self._admission.leave(place, made)
            call.check_end(result)
            if now.losses is not None:
                losses = now.losses.end(result)
                now.announce(StepEnded(step=now.number, component=self.component, losses=losses))
        return result

    def _count(self, now: Pass, times: int) -> None:
        with self._lock:
            self.tokens[now.phase] += times * now.batch * now.tokens

    def _make(self, call: ForwardCall) -> Pass:
        return Pass(
            number=next(self._numbers),
            component=self.component,
            phase=phase_or(call.phase),
            batch=call.batch,
            tokens=call.tokens,
            cached=call.cached,
            rows=rows_or(call.batch, call.cached),
            observers=self.observers,
            limit=self.limit,
            watch=self,
        )

    def _losses(self, now: Pass, call: ForwardCall) -> LossMeter | RowLosses:
        meters = [request.state(self, LossMeter) for request in _requests(now, call)]
        return meters[0] if call.rows is None else RowLosses(meters, call.rows.lengths)

    def _begin(self, now: Pass, call: ForwardCall) -> None:
        self._count(now, 1)
        if any(getattr(observer, "wants_losses", False) for observer in tuple(self.observers)):
            now.losses = self._losses(now, call)
            now.losses.begin(call.ids, shape=(now.batch, now.tokens), cached=now.cached)
        else:
            for request in _requests(now, call):
                request.drop(self)
        if self.observers:
            ids = call.ids
            event = StepStarted(
                step=now.number,
                component=self.component,
                phase=now.phase,
                batch=now.batch,
                tokens=now.tokens,
                input_ids=None if ids is None else np.asarray(ids.detach().to("cpu", torch.int64).numpy()),
                attended=_attended(call.mask, now.batch, now.tokens),
            )
            now.announce(event)


def _requests(now: Pass, call: ForwardCall) -> list[Request]:
    """Whose pass it is: those of its rows, where each has a cache of its own."""
    if call.rows is None:
        return [current_request()]
    return [row.request or current_request() for row in now.rows]


def _compute(now: Pass, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not now.decode or not now.observers:
        return forward(*args, **kwargs)
    now.hold_back()
    try:
        result = forward(*args, **kwargs)
    except BaseException:
        with contextlib.suppress(Exception):
            now.tell_held_back()
        raise
    now.tell_held_back()
    return result


class _Watched(Covering):
    """The forward of a component's outermost module, which a clock sees."""

    def __init__(self, clock: StepClock, module: nn.Module) -> None:
        self._clock = clock
        is_encoder_decoder = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
        self._reader = CallReader(module.forward, is_encoder_decoder=is_encoder_decoder)
        self._neighbours = process_neighbours()
        functools.update_wrapper(self, module.forward, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        neighbours = self._neighbours
        # A thread that computes alone waits for nobody.
        if not neighbours.heard and (neighbours.team > 1 or torch.get_num_threads() > 1):
            neighbours.note()
        return self._clock.run(self._reader.read(args, kwargs), self.beneath, args, kwargs)


def _attended(mask: object, batch: int, tokens: int) -> npt.NDArray[np.bool_] | None:
    """Which new tokens are not padding; None if none is, or if the mask says nothing of single tokens."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < tokens:
        return None
    new = np.asarray(mask[:, mask.shape[1] - tokens :].detach().to("cpu", torch.bool).numpy())
    return None if new.all() else new
