"""Workers of a Ray cluster: each is an actor, a process that opens the model once.

Ray places them, starts a lost one again and keeps a machine from being given more than it has. What is left to do here
is to give each a shard when it has time, to give a lost shard to somebody else, and to put results in order.
"""

from __future__ import annotations

import platform
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Generic

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError

from coterie.cluster.connection import connected
from coterie.cluster.placement import Placement, most_workers
from coterie.cluster.workers import Item, Result, Shard, Work, Worker, WorkerFacts
from coterie.errors import CheckpointNotFoundError, ClusterError, CoterieError, StoreNotFoundError

_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError)
_POLL_S = 0.2
"""Seconds between looks at what else may have happened, while workers are waited for."""
_AT_ONCE = 2
"""Shards that a worker has, so that it need not wait for the next one."""
_AHEAD = 4
"""Items per worker that may be taken before the first of them is handed on."""
_MOST_LOSSES = 3
"""Workers that a shard may cost before it is taken to be the cause."""
_SAME_PLACE = "The model has to be at the same place on every machine, with Coterie of the same version."


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a worker says when it is ready."""

    facts: WorkerFacts
    warned: tuple[str, ...]
    machine: str


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a worker says when it is not, or when its work cannot be done."""

    error: CoterieError
    machine: str


@dataclass(frozen=True, slots=True)
class _NotReady:
    """What a worker says that Ray has started again unnoticed: it was lost while it had nothing to do."""


class CoterieWorker:
    """One process that works. Ray makes a new one of the same work where one is lost.

    Args:
        work: What it does.
    """

    def __init__(self, work: Work[Any, Any]) -> None:
        self._work = work
        self._open = ExitStack()
        self._worker: Worker[Any, Any] | None = None
        self._facts: WorkerFacts | None = None

    def is_there(self) -> None:
        """Answers as soon as the process runs, again if it has been lost."""

    def ready(self) -> _Opened | _Failed:
        """Opens what the work needs."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", category=UserWarning, module=r"coterie\.")
            try:
                if self._facts is None:
                    self._worker, self._facts = self._open.enter_context(self._work.open())
            except CoterieError as error:
                return _Failed(error, _machine())
        return _Opened(self._facts, tuple(str(one.message) for one in caught), _machine())

    def run(self, shard: Any) -> Any:
        """Does a part of the work; a refusal of the work itself comes back as a value."""
        if self._worker is None:
            return _NotReady()
        try:
            return self._worker.run(shard)
        except CoterieError as error:
            return _Failed(error, _machine())


def _reason(error: Exception) -> str:
    """What Ray says of a lost worker, on one line: the last one of what was raised in it, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "creation task" in lines[0] else lines[0]


def _machine() -> str:
    return f"{platform.node()} ({ray.util.get_node_ip_address()})"


class _Taken(Generic[Item, Shard, Result]):
    """An item whose turn to be handed on has not come.

    Its shard is made when somebody has time for it, and not kept: it may be large.
    """

    def __init__(self, item: Item, shard: Callable[[Item], Shard | None]) -> None:
        self.item = item
        self.shard = shard
        self.done = False
        self.result: Result | None = None
        self.error: CoterieError | None = None
        self.losses = 0

    def finish(self, found: Any) -> None:
        """Keeps what a worker gave."""
        self.done = True
        if isinstance(found, _Failed):
            self.error = found.error
        else:
            self.result = found


class _Hand:
    """A worker as it is seen from here.

    Attributes:
        actor: Its handle.
        is_open: Whether it has said that it is ready.
        shards: How many it has.
        losses: How often it was lost since it was last ready.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.is_open = False
        self.shards = 0
        self.losses = 0


class RayWorkers(Generic[Shard, Result]):
    """Workers that are there, or will be.

    Args:
        actors: Their handles.
        expected: What each has to have open.
    """

    def __init__(self, actors: list[Any], expected: WorkerFacts) -> None:
        self._hands = [_Hand(actor) for actor in actors]
        self._expected = expected
        self._asked: dict[Any, tuple[_Hand, _Taken[Any, Shard, Result] | None]] = {}
        self._waiting: deque[_Taken[Any, Shard, Result]] = deque()
        self._told: set[str] = set()
        self._facts: WorkerFacts | None = None
        for hand in self._hands:
            self._await(hand)

    def facts(self, should_stop: Callable[[], bool]) -> WorkerFacts:
        """What the first worker that is ready has open; waits for it.

        Raises:
            KeyboardInterrupt: If ``should_stop`` says so before there is one.
            ClusterError: If one cannot open it, or has another model.
        """
        while self._facts is None:
            if should_stop():
                raise KeyboardInterrupt
            self._collect()
        return self._facts

    def map(
        self, items: Iterable[Item], shard: Callable[[Item], Shard | None], should_stop: Callable[[], bool]
    ) -> Iterator[tuple[Item, Result | None]]:
        """As :meth:`coterie.cluster.workers.Workers.map`."""
        taken: deque[_Taken[Item, Shard, Result]] = deque()
        source, error = iter(items), None
        self._waiting.clear()
        ended = False
        while not should_stop():
            while not ended and len(taken) < _AHEAD * len(self._hands):
                try:
                    item = next(source)
                except StopIteration:
                    ended = True
                except CoterieError as found:
                    # What came before it is handed on first, as it would be with one worker.
                    ended, error = True, found
                else:
                    taken.append(_Taken(item, shard))
                    self._waiting.append(taken[-1])
            self._hand_out()
            if not taken:
                if error is not None:
                    raise error
                return
            if not taken[0].done:
                self._collect()
                continue
            first = taken.popleft()
            if first.error is not None:
                raise first.error
            yield first.item, first.result

    def _hand_out(self) -> None:
        """Gives shards to those who have fewest."""
        while self._waiting:
            free = [hand for hand in self._hands if hand.is_open and hand.shards < _AT_ONCE]
            if not free:
                return
            hand, one = min(free, key=lambda hand: hand.shards), self._waiting.popleft()
            try:
                shard = one.shard(one.item)
            except CoterieError as error:
                one.done, one.error = True, error
                continue
            if shard is None:
                one.done = True
                continue
            hand.shards += 1
            self._asked[hand.actor.run.remote(shard)] = hand, one

    def _await(self, hand: _Hand) -> None:
        """Asks for a worker's process, which may not run yet; what Ray starts again, it asks again."""
        hand.is_open, hand.shards = False, 0
        self._asked[hand.actor.is_there.options(max_task_retries=-1).remote()] = hand, None

    def _collect(self) -> None:
        """Takes what workers have finished; waits a moment if that is nothing."""
        ready, _ = ray.wait(list(self._asked), num_returns=1, timeout=_POLL_S)
        if ready:
            ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for reference in ready:
            hand, one = self._asked.pop(reference)
            try:
                found = ray.get(reference)
            except _LOST as error:
                self._lost(hand, one, error)
                continue
            if isinstance(found, _NotReady):
                assert one is not None, "only work is refused so"
                self._again(hand, one, "it ended while it had nothing to do")
            elif one is not None:
                hand.shards -= 1
                one.finish(found)
            elif found is None:
                self._asked[hand.actor.ready.remote()] = hand, None
            else:
                self._check(found)
                hand.is_open, hand.losses = True, 0

    def _lost(self, hand: _Hand, one: _Taken[Any, Shard, Result] | None, error: Exception) -> None:
        """Gives a lost worker's shard to the next who has time; Ray starts the worker again."""
        if one is not None:
            one.losses += 1
            if one.losses >= _MOST_LOSSES:
                raise ClusterError(
                    f"{_MOST_LOSSES} workers ended while they had the same part of the work: {_reason(error)}",
                    advice="It may be the cause; most often memory is too small. What was done before is kept.",
                ) from error
            self._again(hand, one, _reason(error))
            return
        hand.losses += 1
        if hand.losses >= _MOST_LOSSES:
            raise ClusterError(
                f"A worker ended {hand.losses} times while it opened the model: {_reason(error)}", advice=_SAME_PLACE
            ) from error
        self._await(hand)

    def _again(self, hand: _Hand, one: _Taken[Any, Shard, Result], reason: str) -> None:
        """Has a shard done by the next who has time, and waits for the worker that had it."""
        self._waiting.appendleft(one)
        if hand.is_open:
            self._warn(f"A worker was lost, and another does its part of the work: {reason}")
            self._await(hand)

    def _check(self, found: _Opened | _Failed) -> None:
        """Lets only those work whose results are those of anybody else.

        Raises:
            ClusterError: If a worker cannot open the model, or has another one, or other releases.
        """
        if isinstance(found, _Failed):
            lacks = isinstance(found.error, CheckpointNotFoundError | StoreNotFoundError)
            raise ClusterError(
                f"A worker on {found.machine} cannot open the model: {found.error.message}",
                advice=_SAME_PLACE if lacks else found.error.advice,
                machine=found.machine,
            ) from found.error
        for warning in found.warned:
            self._warn(warning)
        ours, theirs = self._expected, found.facts
        for path, fingerprint in ours.models.items():
            if theirs.models.get(path) != fingerprint:
                raise ClusterError(
                    f"The model {path} on {found.machine} is another one than here: its fingerprint is "
                    f"{theirs.models.get(path)}, not {fingerprint}.",
                    advice="Copy it there anew.",
                    path=path,
                    machine=found.machine,
                )
        for package, release in ours.releases.items():
            if theirs.releases.get(package) != release:
                raise ClusterError(
                    f"{found.machine} has {package} {theirs.releases.get(package)}, and this machine {release}: their "
                    "results may differ.",
                    advice="Install the same releases everywhere.",
                    package=package,
                    machine=found.machine,
                )
        if theirs.kernels != ours.kernels:
            self._warn(
                f"{found.machine} computes with other instructions ({theirs.kernels}) than this machine "
                f"({ours.kernels}): the last bits of a result may differ from those here."
            )
        self._facts = self._facts or theirs

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            warnings.warn(text, stacklevel=2)


@contextmanager
def ray_workers(
    address: str, work: Work[Shard, Result], *, each: Placement, expected: WorkerFacts
) -> Iterator[RayWorkers[Shard, Result]]:
    """As many workers as a cluster has room for; ends them, whatever they do, at the end.

    Args:
        address: Of the cluster, as for :func:`~coterie.cluster.connection.connected`.
        work: What they do.
        each: What each takes of its machine.
        expected: What each has to have open: what a worker here would have.

    Raises:
        UsageError: If there is no such cluster, or no room in it.
    """
    with connected(address):
        count = most_workers(ray.nodes(), each)
        kind = ray.remote(CoterieWorker).options(num_cpus=each.cpus, memory=each.nbytes, max_restarts=-1)
        actors = [kind.remote(work) for _ in range(count)]
        try:
            yield RayWorkers(actors, expected)
        finally:
            for actor in actors:
                ray.kill(actor, no_restart=True)
