"""Has threads that wait sleep, instead of turning on the spot, while other processes need the processors.

:mod:`coterie.native.openmp` says why, and what each costs. What other processes do is looked at a few times a second,
by one thread for the whole process, and only while a model computes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

import torch

from coterie.native import WAITING_SETTINGS, Crowd, turns_for_long, waiting
from coterie.plan.busyness import ProcessorTimes, cores_of_others, processor_times
from coterie.plan.cpu import core_quota, usable_cores

PERIOD_S = 0.25
"""Seconds between two looks."""

BUSY = 0.25
"""Processors by which our threads and other processes must together exceed those that there are."""

FREE = 0.12
"""Below this they exceed them no more. Between the two, all stays as it is."""

CALM = 4
"""Looks in a row at which there must be room before threads turn on the spot again."""

REST_S = 5.0
"""Seconds without a forward pass after which nobody looks any more."""

_LEAST_OWN = 0.1
"""Processors that this process uses while a long pass, of which nothing is heard, goes on."""


class Threads(Protocol):
    """What :class:`~coterie.native.Crowd` is."""

    @property
    def stands(self) -> bool:
        """Whether waiting threads sleep."""
        ...

    def gather(self) -> None:
        """From now on they do."""
        ...

    def scatter(self) -> None:
        """From now on they turn on the spot."""
        ...


class Helper(Protocol):
    """Who has threads that run while processors are idle, which nobody is if threads turn on the spot."""

    def wants_processor(self) -> bool:
        """Whether there is something for them to do that is worth it, by the time since the last call."""
        ...


class Judgement:
    """Whether waiting threads should sleep, after one look after the other.

    Args:
        cores: Processors that this process may use.
        quota: Processors' worth of time that the cgroup grants; None without a quota.
    """

    def __init__(self, cores: int, quota: int | None) -> None:
        self._cores = cores
        self._quota = quota
        self._calm = 0
        self.sleep = False

    def look(self, others: float | None, threads: int) -> bool:
        """Takes one look into account and returns the judgement.

        Args:
            others: Processors that other processes use; None if that is not known.
            threads: Threads that compute together in this process.
        """
        # Time that is granted is used up by turning, too.
        starved = self._quota is not None and threads > self._quota
        excess = 0.0 if others is None else others + threads - self._cores
        if threads > 1 and (starved or excess > BUSY):
            self._calm = 0
            self.sleep = True
        elif threads < 2 or excess < FREE:
            self._calm += 1
            if self._calm >= CALM:
                self.sleep = False
        return self.sleep


class Neighbours:
    """Looks at other processes while this one computes.

    Args:
        threads: Changes how threads wait.
        times: Gives the processor times.
        pause: Waits so many seconds.

    Attributes:
        heard: Whether it need not be told of another forward pass for now.
        team: Threads that compute together, as it was last told.
    """

    def __init__(
        self,
        threads: Threads,
        *,
        times: Callable[[], ProcessorTimes | None] = processor_times,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._crowd = threads
        self._times = times
        self._pause = pause
        self._lock = threading.Lock()
        self.heard = False
        self._watcher: threading.Thread | None = None
        self._last: ProcessorTimes | None = None
        self.team = 1
        self._helpers: WeakSet[Helper] = WeakSet()

    def heed(self, helper: Helper) -> None:
        """From now on, this one counts as another process that needs a processor, while it wants one."""
        self._helpers.add(helper)

    def begin(self) -> None:
        """A model is about to be opened: what others do meanwhile is what the first step goes by."""
        self._last = self._times()

    def warning(self) -> str | None:
        """What a user should know of other processes, once a model is open; nothing where all is seen to."""
        return None

    def note(self) -> None:
        """A forward pass begins; to be called while that is not :attr:`heard`, and threads compute together, or did."""
        self.team = torch.get_num_threads()
        if self.team < 2:
            return
        self.heard = True
        if self._watcher is None:
            with self._lock:
                if self._watcher is None:
                    self._watcher = threading.Thread(target=self._watch, name="coterie-neighbours", daemon=True)
                    self._watcher.start()

    def _watch(self) -> None:
        judgement = Judgement(usable_cores(), core_quota())
        last, rested = self._last or self._times(), 0.0
        while last is not None:
            now = self._times()
            if now is None:
                break
            others = cores_of_others(last, now)
            if others is not None:
                others += sum(helper.wants_processor() for helper in list(self._helpers))
                own = (now.own_s - last.own_s) / (now.at_s - last.at_s)
                rested = 0.0 if self.heard or own > _LEAST_OWN else rested + now.at_s - last.at_s
                if judgement.look(others, self.team):
                    self._crowd.gather()
                else:
                    self._crowd.scatter()
                self._last = last = now
                self.heard = False
            if rested > REST_S:
                break
            self._pause(PERIOD_S)
        with self._lock:
            self._crowd.scatter()
            self._watcher = None
            # Who is heard from now on starts another one.
            self.heard = False


class Onlooker:
    """Where the way in which threads wait cannot be changed, or is the user's choice.

    Args:
        times: Gives the processor times.

    Attributes:
        heard: It never needs to be told of a forward pass.
        team: Threads that compute together do not matter to it.
    """

    heard = True
    team = 1

    def __init__(self, *, times: Callable[[], ProcessorTimes | None] = processor_times) -> None:
        self._times = times
        self._last: ProcessorTimes | None = None

    def begin(self) -> None:
        """As :meth:`Neighbours.begin`."""
        self._last = self._times()

    def heed(self, helper: Helper) -> None:
        """As :meth:`Neighbours.heed`."""

    def note(self) -> None:
        """Nothing to change."""

    def warning(self) -> str | None:
        """As :meth:`Neighbours.warning`."""
        threads, now = torch.get_num_threads(), self._times()
        if threads < 2 or not turns_for_long() or self._last is None or now is None:
            return None
        others = cores_of_others(self._last, now)
        if others is None or others + threads - usable_cores() <= BUSY:
            return None
        stated = [f"{name}={os.environ[name]}" for name in WAITING_SETTINGS if os.environ.get(name)]
        why = f"{stated[0]} is set" if stated else "this OpenMP runtime is not GNU's"
        cure = (
            f"unset {stated[0].partition('=')[0]}" if stated else "set OMP_WAIT_POLICY=passive before torch is imported"
        )
        return (
            f"Other processes keep processors busy, and {why}, so threads that wait keep theirs, too: that can make a "
            f"model several times slower. Use fewer threads, or {cure}."
        )


def process_neighbours() -> Neighbours | Onlooker:
    """The one of this process."""
    return _ADAPTIVE if waiting() == "adaptive" else _ONLOOKER


_ADAPTIVE = Neighbours(Crowd())
_ONLOOKER = Onlooker()
