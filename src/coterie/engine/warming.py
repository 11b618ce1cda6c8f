"""Uses a profile: says what a request will need before it needs it. Changes no output."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np

from coterie.cache import ExpertCache
from coterie.engine.caller import warn_caller
from coterie.engine.source import ModelSource
from coterie.eviction import TRUST, EvictionPolicy, check_policy, make_policy
from coterie.spec import (
    DEFAULT_WARM,
    BankKey,
    Event,
    ExpertKey,
    ExpertsSelected,
    Observer,
    StepStarted,
    format_bytes,
    share_nbytes,
)
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from collections.abc import Callable

    from coterie.profiles import ExpectedUse, Usage
    from coterie.profiles.facts import Counts

_MODALITIES = {"pixel_values": "image", "pixel_values_videos": "video", "input_features": "audio"}
"""What a model's inputs are called → what they are."""


def modalities_of(inputs: Iterable[str]) -> set[str]:
    """The modalities of a request, by the names of a model's inputs."""
    return {"text"} | {_MODALITIES[name] for name in inputs if name in _MODALITIES}


def check_profile_use(opening: Opening) -> None:
    """Refuses a policy that there is not, or that needs a profile, before anything is read.

    Raises:
        UsageError: If so.
    """
    check_policy(opening.eviction, profile=opening.profile is not None)
    if opening.profile is not None and opening.warm is None and opening.eviction != TRUST:
        warn_caller("The profile has no effect: nothing is warmed, and eviction is not trust.")


def read_usage(opening: Opening, source: ModelSource) -> Usage | None:
    """What the profile says about the model that is opened; None without one.

    Raises:
        ProfileError: Its subclasses say what is wrong with the profile, or that it is another model's.
        UsageError: If the domain is not in it; says which are.
    """
    if opening.profile is None:
        return None
    from coterie.profiles import Usage

    usage = Usage.open(opening.profile, source.identity)
    usage.where(None if opening.warm == DEFAULT_WARM else opening.warm)
    return usage


def eviction_policy(opening: Opening, usage: Usage | None) -> EvictionPolicy[ExpertKey]:
    """The eviction policy, empty; :class:`Warming` tells it what to expect."""
    return make_policy(opening.eviction, None if usage is None else {})


class Warming:
    """Has the cache read, keep and expect what a request will probably use.

    At first that is what all requests use. A request's modalities are known from its inputs; its domain, with ``auto``
    and where the profile has several, from which experts its prompt has chosen: the domain under which that is most
    likely is taken when the prompt has been read.

    Args:
        usage: The profile.
        cache: Of the open model.
        opening: What was asked for.
        nbytes: Expert → bytes of its record, for all that are there.
        working_set: Bytes that one token uses; pins leave that much.
        observers: Adds and removes an observer of the model.
    """

    def __init__(
        self,
        usage: Usage,
        cache: ExpertCache,
        opening: Opening,
        *,
        nbytes: dict[ExpertKey, int],
        working_set: int,
        observers: tuple[Callable[[Observer], None], Callable[[Observer], None]],
    ) -> None:
        self._usage = usage
        self._cache = cache
        self._nbytes = nbytes
        self._reads = opening.warm is not None
        self._auto = opening.warm == DEFAULT_WARM
        self._pinned_nbytes = _pinned_nbytes(opening.pin, cache, working_set)
        self._add, self._remove = observers
        self._counts: dict[BankKey, Counts] | None = None
        self._modalities: frozenset[str] | None = None
        self.domain = None if self._auto else opening.warm
        self._tell()

    @property
    def modalities(self) -> tuple[str, ...] | None:
        """The modalities that are expected; None for all."""
        return None if self._modalities is None else tuple(sorted(self._modalities))

    def expect(self, modalities: Collection[str]) -> None:
        """A request of these modalities comes next.

        Those that the profile does not know are passed over.
        """
        known = frozenset(modalities) & set(self._usage.modalities)
        changed = (known or None) != self._modalities
        self._modalities = known or None
        if changed:
            if self.domain is not None and not self._knows(self.domain):
                self._modalities = None
            self._tell()
        if self._auto and len(self._usage.domains) > 1:
            self._counts = {}
            self._remove(self)
            self._add(self)

    def on_event(self, event: Event) -> None:
        """Counts what a prompt chooses; decides on the domain when the first token after it is computed."""
        counts = self._counts
        if counts is None:
            return
        if isinstance(event, ExpertsSelected):
            bank = self._usage.banks.get(event.bank)
            if bank is not None:
                ids = event.expert_ids.ravel()
                found = np.bincount(ids[ids < bank.shape.experts], minlength=bank.shape.experts)
                counts[event.bank] = counts[event.bank] + found if event.bank in counts else found
        elif isinstance(event, StepStarted) and event.phase == "decode" and counts:
            self._counts = None
            self._remove(self)
            domain = self._usage.likeliest_domain(counts, self._modalities)
            if domain is not None and domain != self.domain:
                self.domain = domain
                self._tell()

    def _knows(self, domain: str) -> bool:
        return bool(self._usage.where(domain, self._modalities).any())

    def _tell(self) -> None:
        expected: ExpectedUse = self._usage.expected(domain=self.domain, modalities=self._modalities)
        self._cache.expect_use(expected.values())
        if self._reads:
            self._cache.warm(expected.order(self._nbytes), pinned_nbytes=self._pinned_nbytes)


def _pinned_nbytes(pin: str | int | None, cache: ExpertCache, working_set: int) -> int:
    if pin is None:
        return 0
    wanted = share_nbytes(pin, cache.capacity, "pin")
    if cache.capacity >= cache.total_bytes:
        return wanted
    most = max(0, cache.capacity - max(working_set, cache.minimum))
    if wanted > most:
        warn_caller(
            f"pin={pin!r} is {format_bytes(wanted)}; {format_bytes(most)} are pinned, because one token uses "
            f"{format_bytes(working_set)} of the {format_bytes(cache.capacity)} that experts have.",
        )
    return min(wanted, most)
