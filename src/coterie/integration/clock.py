"""Which forward pass is going on: its number, its phase and how many tokens it may have."""

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
from coterie.integration.admission import Admission, refuse_offloaded
from coterie.integration.forward_call import CallReader, ForwardCall
from coterie.integration.limit import ExpertLimit
from coterie.integration.logits_room import LogitsRoom
from coterie.integration.losses import LossMeter
from coterie.integration.neighbours import process_neighbours
from coterie.native import PassMemory
from coterie.spec import Event, Observer, Phase, StepEnded, StepStarted


class _CurrentPass(threading.local):
    step = -1
    phase: Phase = "prefill"
    contributions = False
    losses: LossMeter | None = None
    memory: PassMemory | None = None
    # What is to be told when a decode step is over; None outside one.
    pending: list[Callable[[], Event | None]] | None = None


class StepClock:
    """Counts the forward passes of one component and announces them. Each thread has its own current pass.

    Attributes:
        component: Name of the component.
        tokens: Phase → tokens computed.
        max_context: Tokens (sequences × length) that the memory budget was made for; None for no limit.
        observers: Who is told; shared with the banks.
        limit: Leaves out some of the experts that routers choose; None where nobody asked for that.
    """

    def __init__(self, component: str, observers: list[Observer], admission: Admission | None = None) -> None:
        self.component = component
        self.max_context: int | None = None
        self.observers = observers
        self.limit: ExpertLimit | None = None
        self.tokens: dict[Phase, int] = {"prefill": 0, "decode": 0}
        self._numbers = itertools.count()
        self._current = _CurrentPass()
        self._admission = admission or Admission()
        self._makes_logits = False
        self._lock = threading.Lock()

    @property
    def step(self) -> int:
        """Number of this thread's forward pass, from 0; -1 before its first."""
        return self._current.step

    @property
    def phase(self) -> Phase:
        """Phase of this thread's forward pass."""
        return self._current.phase

    @property
    def contributions(self) -> bool:
        """Whether an observer of this thread's forward pass wants to know what experts contribute."""
        return self._current.contributions

    @property
    def memory(self) -> PassMemory:
        """Working memory of this thread's forward pass, gone when that is over."""
        if self._current.memory is None:
            self._current.memory = PassMemory()
        return self._current.memory

    def provide(self, max_context: int, logits: LogitsRoom | None) -> None:
        """Says what the memory budget was made for: more is refused from now on.

        Args:
            max_context: Tokens (sequences × length).
            logits: What there is for logits; None where nothing bounds them, or none are made of a vocabulary.
        """
        self.max_context = max_context
        self._admission.logits = logits if self._makes_logits else None

    def install(self, module: nn.Module, *, makes_logits: bool = False) -> None:
        """Watches forward passes.

        Args:
            module: The component's outermost module.
            makes_logits: Whether logits of the whole vocabulary are made of what it computes.
        """
        self._makes_logits = makes_logits
        forward = module.forward
        is_encoder_decoder = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
        reader = CallReader(forward, is_encoder_decoder=is_encoder_decoder)
        note = process_neighbours().note

        # A hook would do, at twice the price: with one, torch takes a slower way through every call.
        @functools.wraps(forward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            note()
            call = reader.read(args, kwargs)
            refuse_offloaded(call)
            most = self.max_context
            place = None if most is None else self._admission.enter(call, most)
            made: list[Any] = []
            try:
                self._begin(call)
                result = self._run(forward, args, kwargs)
                if place is not None and not call.caches and call.uses_cache is not False:
                    made = caches_in([result])
            finally:
                self._current.memory = None
                if place is not None:
                    self._admission.leave(place, made)
            call.check_end(result)
            losses = self._current.losses
            if losses is not None:
                self._tell(StepEnded(step=self.step, component=self.component, losses=losses.end(result)))
            return result

        module.__dict__["forward"] = watched

    def _run(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.phase != "decode" or not self.observers:
            return forward(*args, **kwargs)
        self._current.pending = []
        try:
            result = forward(*args, **kwargs)
        except BaseException:
            with contextlib.suppress(Exception):
                self._tell_pending()
            raise
        self._tell_pending()
        return result

    def tell(self, make: Callable[[], Event | None]) -> None:
        """Tells observers an event; in a decode step, when that is over.

        Between two layers of a large model the processor's caches forget everything: making and telling an event there
        takes ten times as long as telling all of a step one after the other.

        Args:
            make: Makes the event; None if there is nothing to be told.
        """
        pending = self._current.pending
        if pending is None:
            self._tell(make())
        else:
            pending.append(make)

    def _tell_pending(self) -> None:
        pending, self._current.pending = self._current.pending, None
        for make in pending or ():
            self._tell(make())

    def _tell(self, event: Event | None) -> None:
        if event is not None:
            for observer in tuple(self.observers):
                observer.on_event(event)

    def _begin(self, call: ForwardCall) -> None:
        batch = call.batch
        self._current.step, self._current.phase = next(self._numbers), call.phase
        with self._lock:
            self.tokens[call.phase] += batch * call.tokens
        observers = tuple(self.observers)
        self._current.contributions = any(getattr(observer, "wants_contributions", False) for observer in observers)
        self._meter(observers, call)
        if observers:
            ids = call.ids
            event = StepStarted(
                step=self.step,
                component=self.component,
                phase=call.phase,
                batch=batch,
                tokens=call.tokens,
                input_ids=None if ids is None else np.asarray(ids.detach().to("cpu", torch.int64).numpy()),
                attended=_attended(call.mask, batch, call.tokens),
            )
            self._tell(event)

    def _meter(self, observers: tuple[Observer, ...], call: ForwardCall) -> None:
        now = self._current
        if not any(getattr(observer, "wants_losses", False) for observer in observers):
            now.losses = None
            return
        if now.losses is None:
            now.losses = LossMeter()
        now.losses.begin(call.ids, shape=(call.batch, call.tokens), cached=call.cached)


def _attended(mask: object, batch: int, tokens: int) -> npt.NDArray[np.bool_] | None:
    """Which new tokens are not padding; None if none is, or if the mask says nothing of single tokens."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < tokens:
        return None
    new = np.asarray(mask[:, mask.shape[1] - tokens :].detach().to("cpu", torch.bool).numpy())
    return None if new.all() else new
