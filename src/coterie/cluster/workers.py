"""What a worker does, and the workers that do it: on a cluster, or the one here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from coterie.cluster.placement import Placement
from coterie.errors import UsageError
from coterie.files.naming import IN_PACKAGE, resolve_path
from coterie.spec.opening import Opening
from coterie.spec.sizes import parse_bytes

Item = TypeVar("Item")
Shard = TypeVar("Shard")
Result = TypeVar("Result")
Takes = TypeVar("Takes", contravariant=True)
Gives = TypeVar("Gives", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """A model that workers of a cluster open, each of them for itself.

    Attributes:
        path: The model, at the same place on every machine.
        opening: How each opens it; its memory is what each may take.
        address: Of the cluster, as for :func:`coterie.cluster.connection.connected`.
    """

    path: str
    opening: Opening
    address: str

    def __post_init__(self) -> None:
        check_memory(self.opening)
        source = self.opening.source
        opening = replace(self.opening, source=None if source is None else place_of(source))
        object.__setattr__(self, "path", place_of(self.path))
        object.__setattr__(self, "opening", opening)

    @property
    def each(self) -> Placement:
        """What each worker takes of its machine."""
        memory, threads = self.opening.memory, self.opening.threads
        assert memory is not None
        assert threads is not None, "workers compute with the threads of a model here"
        return Placement(threads, parse_bytes(memory, what="memory"))


def check_memory(opening: Opening) -> None:
    """Refuses an opening that does not say what a worker may take.

    Raises:
        UsageError: If it does not.
    """
    if opening.memory is None:
        raise UsageError(
            "Several workers may share a machine, and nothing says what each may take of it.",
            advice="Add --memory, which is meant for each.",
        )


def place_of(model: str | Path) -> str:
    """What names a model in any directory: workers do not run in this one."""
    if model in IN_PACKAGE:
        return str(model)
    path = Path(resolve_path(model)).expanduser()
    return str(path.absolute() if path.exists() else model)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """What decides whether the results of two workers belong together.

    Attributes:
        models: Paths of the models that are open → fingerprints of their content.
        releases: Packages that compute → their releases.
        kernels: Which kernels this processor gets: others may give other bits.
        details: What else is to be known of a worker's model by those who share out the work.
    """

    models: dict[str, str]
    releases: dict[str, str]
    kernels: str
    details: Any = None


class Worker(Protocol[Takes, Gives]):
    """Who does the work, with all that it needs open."""

    def run(self, shard: Takes) -> Gives:
        """Does a part of the work. It changes nothing outside the worker, so it may be done again."""
        ...


class Work(Protocol[Takes, Gives]):
    """What is sent to each worker: how it opens what it needs."""

    def open(self) -> AbstractContextManager[tuple[Worker[Takes, Gives], WorkerFacts]]:
        """Opens it, and says what it is; frees it at the end."""
        ...


class Workers(Protocol[Takes, Gives]):
    """Workers that share work; results come in the order of what was given, whoever did it."""

    def map(
        self, items: Iterable[Item], shard: Callable[[Item], Takes | None], should_stop: Callable[[], bool]
    ) -> Iterator[tuple[Item, Gives | None]]:
        """Has the shards of items done.

        Args:
            items: In order. They are taken when there is somebody to work on them.
            shard: Item → what a worker gets of it; None if there is nothing to do.
            should_stop: Asked before every item is handed on, and while workers are waited for. When it says yes,
                there are no more items.

        Yields:
            Each item with the result of its shard, None where there was none.

        Raises:
            ClusterError: If workers are lost again and again.
            CoterieError: As the work does, and as the items do; all items before have been handed on.
        """
        ...


def never() -> bool:
    """The ``should_stop`` of work that nobody stops."""
    return False


@dataclass(frozen=True, slots=True)
class Here(Generic[Shard, Result]):
    """The worker of this process, for whom nothing is sent anywhere."""

    worker: Worker[Shard, Result]

    def map(
        self, items: Iterable[Item], shard: Callable[[Item], Shard | None], should_stop: Callable[[], bool]
    ) -> Iterator[tuple[Item, Result | None]]:
        """As :meth:`Workers.map`."""
        for item in items:
            if should_stop():
                return
            piece = shard(item)
            yield item, None if piece is None else self.worker.run(piece)
