"""Spreads work over a cluster: the one way in, for whoever has some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coterie.cluster.connection import check_ray, connected
from coterie.cluster.placement import Placement
from coterie.cluster.workers import Result, Shard, Work, WorkerFacts, Workers, check_memory
from coterie.spec.opening import Opening


def check_spreading(opening: Opening) -> None:
    """Finds out, before anything is opened, that no worker could open a model so.

    Raises:
        MissingPackageError: If Ray is not installed.
        UsageError: If it is not said what a worker may take.
    """
    check_ray("Workers of a cluster")
    check_memory(opening)


@contextmanager
def one_connection(address: str | None) -> Iterator[None]:
    """Inside, all that is spread over a cluster shares one connection to it, and one that it starts itself.

    Args:
        address: Of the cluster; None if nothing is spread.

    Raises:
        MissingPackageError: If Ray is not installed.
        UsageError: If there is no such cluster.
    """
    if address is None:
        yield
        return
    check_ray("Workers of a cluster")
    with connected(address):
        yield


@contextmanager
def spread(
    address: str,
    each: Placement,
    work: Work[Shard, Result],
    expected: WorkerFacts,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[Workers[Shard, Result], WorkerFacts]]:
    """As many workers as a cluster has room for; they end with the block, whatever they do.

    Args:
        address: Of the cluster.
        each: What each of them takes of its machine.
        work: What they do.
        expected: What each has to have open: what a worker here would have.
        should_stop: Asked while the first of them is waited for.

    Yields:
        The workers, and what the first of them has open.

    Raises:
        MissingPackageError: If Ray is not installed.
        UsageError: If there is no such cluster, or no room in it.
        KeyboardInterrupt: If ``should_stop`` says so.
        ClusterError: If a worker cannot open what it needs, or has another model.
    """
    check_ray("Workers of a cluster")
    from coterie.cluster.ray_workers import ray_workers

    with ray_workers(address, work, each=each, expected=expected) as workers:
        yield workers, workers.facts(should_stop)
