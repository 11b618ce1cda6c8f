"""Predicts what the next two layers will ask for, so that the disk never waits for a router.

Two layers' routers get hidden states that differ little: each layer adds little to the residual stream. So the next
layer's router, given this layer's input early, mostly chooses what it will choose in earnest, and the router of the
layer after it does so a little less often. What does differ, the norms' weights above all, is mostly the same for every
token: the mean difference between the two inputs is kept and added. That is worth as much as applying the later layer's
own norm, without knowing where a model keeps it.

What is predicted of the layer after the next is predicted once more a layer later, where that costs no time: while this
layer's experts are being read.

Nothing here changes what the model computes: routers are asked up to their choice and no further, and what is read
early is read from the same place.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from coterie.cache import ExpertCache
from coterie.errors import UnsupportedError
from coterie.passes.bank import StreamedBank
from coterie.passes.clock import StepClock
from coterie.passes.current import Pass
from coterie.passes.forwards import Covering, at, install
from coterie.passes.trial import PrefetchTrial, Verdict
from coterie.routing import find_router, preview_of
from coterie.spec import Prefetch

_MOST_ROWS = 16
"""Tokens of a step up to which predictions are made: more of them ask for most of a layer anyway."""

_LEARNING_ROWS = 64
"""Tokens of a prefill, the last ones, that the mean difference between inputs is learned from."""

_RATE = 0.05
"""What one token counts for in the mean difference."""

REACH = 2
"""Sites ahead that predictions are made for."""

_EVERY = 4
"""Steps between two updates of the mean difference: it hardly changes, and an update takes a fifth of a prediction."""


class _Place:
    """Where a forward pass is."""

    def __init__(self) -> None:
        self.begun = False
        self.looks = False
        self.learns = False
        self.site: Site | None = None
        self.hidden: torch.Tensor | None = None
        # Of the last sites, the latest first.
        self.means_D: deque[torch.Tensor] = deque(maxlen=REACH)
        # What was predicted by the site before.
        self.foreseen: Site | None = None


@runtime_checkable
class _Previewing(Protocol):
    """A router's forward that can be asked ahead of time."""

    def preview(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Ids of the experts that it would choose, [T, K]."""
        ...


class Site:
    """A place in the model where experts are chosen.

    Args:
        ahead: Whose place it is.
        streamed: The experts.
        block: The module that has the router.
    """

    def __init__(self, ahead: LookAhead, streamed: StreamedBank, block: nn.Module) -> None:
        self._ahead = ahead
        self.streamed = streamed
        self._block = block
        self._preview: Callable[..., torch.Tensor | None] | None = None
        self._examined = False
        self._rest: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._rest_is_constant = True
        # The site whose router was called next, last time.
        self.follower: Site | None = None
        # How much its input differed from that of the site before, and of the one before that.
        self._drifts_D: list[torch.Tensor | None] = [None] * REACH

    def called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The router is called with these arguments, of which the first is the hidden state."""
        if not args or not isinstance(args[0], torch.Tensor):
            return
        if len(args) > 1 or kwargs:
            self._note_rest(args[1:], kwargs)
        self._ahead.reached(self, args[0])

    def learn(self, means_D: Iterable[torch.Tensor], mean_D: torch.Tensor, weight: float) -> None:
        """The means of the inputs of the sites before, the latest first, and of this one's, over the same tokens."""
        for after, before_D in enumerate(means_D):
            if before_D.shape != mean_D.shape:
                continue
            old_D, new_D = self._drifts_D[after], mean_D - before_D
            if old_D is not None and old_D.shape == new_D.shape:
                new_D = torch.lerp(old_D, new_D, weight)
            self._drifts_D[after] = new_D

    def predict(self, before: torch.Tensor, most: int | None = None, *, after: int = 0) -> list[int]:
        """Ids of the experts that this site will probably ask for, likeliest first, by the input of one before.

        Args:
            before: The input of the site before.
            most: How many of a token's experts are computed; None for all.
            after: Sites between that one and this.
        """
        preview, drift_D = self._preview, self._drifts_D[after]
        if preview is None or not self._rest_is_constant or drift_D is None:
            return []
        with torch.inference_mode():
            if before.shape[-1] != drift_D.shape[0]:
                return []
            try:
                index_TK = preview((before + drift_D).to(before.dtype), *self._rest[0], **self._rest[1])
            except Exception:  # a class of another release may need more than what was seen when it was examined
                self._preview = index_TK = None
        if index_TK is None:
            return []
        rows = index_TK.reshape(-1, index_TK.shape[-1])[:, :most].tolist()
        ranked = rows[0] if len(rows) == 1 else dict.fromkeys(e for rank in zip(*rows, strict=True) for e in rank)
        count = self.streamed.bank.num_experts
        return [expert for expert in ranked if expert < count]

    @property
    def can_predict(self) -> bool:
        """Whether this site's router can be asked ahead of time."""
        if not self._examined:
            self._examined = True
            native = at(find_router(self._block).module, "native")
            # Of absent experts a preview knows, but not a router's forward.
            if isinstance(native, _Previewing) and self.streamed.missing is None:
                self._preview = native.preview
            else:
                try:
                    self._preview = preview_of(self._block)
                except Exception:  # what cannot be examined in this release is not asked ahead
                    self._preview = None
        return self._preview is not None

    def _note_rest(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Further arguments can only be given ahead of time if they are the same in every pass, as biases are."""
        old_args, old_kwargs = self._rest
        same = len(args) == len(old_args) and kwargs.keys() == old_kwargs.keys()
        same = same and all(a is b for a, b in zip(args, old_args, strict=True))
        self._rest_is_constant = same and all(kwargs[name] is old_kwargs[name] for name in kwargs)
        self._rest = args, kwargs


class WatchedRouter(Covering):
    """A router's forward that tells its site of every call.

    Args:
        site: The site.
        router: The router.

    Attributes:
        site: The site.
    """

    def __init__(self, site: Site, router: nn.Module) -> None:
        self.site = site
        functools.update_wrapper(self, router.forward, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the router chooses."""
        self.site.called(args, kwargs)
        return self.beneath(*args, **kwargs)


class LookAhead:
    """The sites of one component, in the order in which they turn out to be reached.

    Args:
        clock: The component's forward passes.
        mode: ``"auto"`` or ``"on"``.
    """

    def __init__(self, clock: StepClock, mode: Prefetch) -> None:
        self._clock = clock
        self._mode: Prefetch = mode
        self._sites: list[Site] = []
        self._cache: ExpertCache | None = None
        # By about how many rows steps have: those of one and of several are not compared.
        self._trials: dict[int, PrefetchTrial] = {}
        self._seconds: Callable[[], float] = time.perf_counter
        self.trial: PrefetchTrial | None = None

    @property
    def verdict(self) -> Verdict:
        """What looking ahead was worth lately."""
        if self._cache is not None and self._cache.all_resident:
            return "complete"
        return "unknown" if self.trial is None else self.trial.verdict

    def watch(self, streamed: StreamedBank, block: nn.Module) -> None:
        """Watches the router of a block, and what its bank asks for. Blocks without one are left alone."""
        try:
            router = find_router(block).module
        except UnsupportedError:
            return
        site = Site(self, streamed, block)
        self._sites.append(site)
        install(router, "prediction", WatchedRouter(site, router))
        streamed.look_ahead = functools.partial(self.look_ahead, site)

    def connect(self, cache: ExpertCache, clock: Callable[[], float] = time.perf_counter) -> None:
        """Gives it the cache that predictions go to."""
        self._cache = cache
        self.trial = self._trials[0] = PrefetchTrial(self._mode, cache.read_times, clock)
        self._seconds = clock

    def _trial_of(self, rows: int, cache: ExpertCache, last: PrefetchTrial) -> PrefetchTrial:
        """The trial for steps of about so many rows; for that of other ones it is an interruption."""
        kind = (rows - 1).bit_length()
        trial = self._trials.get(kind)
        if trial is None:
            trial = self._trials[kind] = PrefetchTrial(self._mode, cache.read_times, self._seconds)
        if trial is not last:
            last.interrupt()
            self.trial = trial
        return trial

    def reached(self, site: Site, hidden: torch.Tensor) -> None:
        """A site's router is called, before it chooses."""
        now = self._clock.now()
        if now.number < 0:
            return
        place = now.state(self, _Place)
        if not place.begun:
            place.begun = True
            self._begin(now, place, hidden)
        before = place.site
        if before is not None and before is not site:
            before.follower = site
        if place.learns:
            self._learn(place, site, hidden)
        place.site = site
        place.hidden = hidden if place.looks else None

    def look_ahead(self, site: Site) -> None:
        """A site has asked for experts; what is missing of them is being read. Predicts what comes next."""
        now, cache = self._clock.now(), self._cache
        place = now.state(self, _Place)
        if not place.looks or place.site is not site or cache is None:
            return
        hidden, foreseen, place.foreseen = place.hidden, place.foreseen, None
        later: Site | None = site
        for after in range(REACH):
            later = None if later is None else later.follower
            if later is None or later is site or hidden is None:
                return
            if after == 0 and later is foreseen and not cache.is_reading:
                continue
            if later.can_predict:
                ids = later.predict(hidden, _most(now, later.streamed), after=after)
                keys = later.streamed.keys
                cache.predict([keys[expert] for expert in ids], consumer=now.consumer, after=after)
                if after:
                    place.foreseen = later

    @staticmethod
    def _learn(place: _Place, site: Site, hidden: torch.Tensor) -> None:
        with torch.inference_mode():
            last_TD = hidden.reshape(-1, hidden.shape[-1])[-_LEARNING_ROWS:]
            mean_D = last_TD.mean(dim=0, dtype=torch.float32)
            site.learn(place.means_D, mean_D, 1 - (1 - _RATE) ** max(last_TD.shape[0], _EVERY))
        place.means_D.appendleft(mean_D)

    def _begin(self, now: Pass, place: _Place, hidden: torch.Tensor) -> None:
        """A forward pass has come to its first router."""
        cache, trial = self._cache, self.trial
        if cache is None or trial is None or cache.all_resident:
            return
        if now.decode and hidden.numel() <= _MOST_ROWS * hidden.shape[-1]:
            place.looks = self._trial_of(now.batch, cache, trial).begin_step()
            place.learns = place.looks and now.number % _EVERY == 0
        else:
            trial.interrupt()
            place.learns = True


def _most(now: Pass, streamed: StreamedBank) -> int | None:
    """How many of a token's experts a bank is likely to ask for; None for all that its router chooses."""
    given = (
        None if now.limit is None else now.limit.most(now.component),
        None if streamed.cold is None else streamed.cold.usual,
    )
    return min((one for one in given if one is not None), default=None)
