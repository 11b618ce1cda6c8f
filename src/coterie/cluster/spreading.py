"""Spreads work over a cluster: the one way in, for whoever has some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coterie.cluster.connection import check_ray
from coterie.cluster.placement import Placement
from coterie.cluster.workers import RemoteModel, Result, Shard, Work, WorkerFacts, Workers, check_memory
from coterie.spec.opening import Opening
from coterie.spec.sizes import parse_bytes


def check_spreading(opening: Opening) -> None:
    """Finds out, before anything is opened, that no worker could open a model so.

    Raises:
        MissingPackageError: If Ray is not installed.
        UsageError: If it is not said what a worker may take.
    """
    check_ray("Workers of a cluster")
    check_memory(opening)


@contextmanager
def spread(
    model: RemoteModel, work: Work[Shard, Result], expected: WorkerFacts, should_stop: Callable[[], bool]
) -> Iterator[tuple[Workers[Shard, Result], WorkerFacts]]:
    """As many workers as a cluster has room for; they end with the block, whatever they do.

    Args:
        model: What they open, with a number of threads.
        work: What they do.
        expected: What each has to have open: what a worker here would have.
        should_stop: Asked while the first of them is waited for.

    Yields:
        The workers, and what the first of them has open.

    Raises:
        MissingPackageError: If Ray is not installed.
        UsageError: If there is no such cluster, or no room in it.
        KeyboardInterrupt: If ``should_stop`` says so.
        ClusterError: If a worker cannot open the model, or has another one.
    """
    check_spreading(model.opening)
    from coterie.cluster.ray_workers import ray_workers

    memory, threads = model.opening.memory, model.opening.threads
    assert memory is not None
    assert threads is not None, "workers compute with the threads of a model here"
    each = Placement(threads, parse_bytes(memory, what="memory"))
    with ray_workers(model.address, work, each=each, expected=expected) as workers:
        yield workers, workers.facts(should_stop)
