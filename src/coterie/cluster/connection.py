"""A Ray cluster: whether it can be used, and the connection to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from coterie.errors import MissingPackageError, UsageError
from coterie.spec.extras import install_advice

LOCAL = "local"
"""For an address: a Ray of one's own on this machine, which ends with the process that started it."""


def check_ray(what: str) -> None:
    """Finds out that Ray is not installed, before anything is opened.

    Args:
        what: What needs it, as the subject of a sentence, such as ``Replicas``.

    Raises:
        MissingPackageError: If it is not; says how to install it.
    """
    if find_spec("ray") is None:
        raise MissingPackageError(
            f"{what} need ray, which is not installed.", advice=install_advice("ray"), package="ray"
        )


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Inside, this process is connected to a cluster. A connection that it has already is used and kept.

    Args:
        address: ``host:6379`` of a cluster's head, ``auto`` for the cluster of this machine, ``ray://host:10001`` for
            one that is reached through Ray Client; ``local`` starts one on this machine, which ends with the block.

    Raises:
        UsageError: If there is no such cluster.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"namespace": "coterie", "logging_level": logging.ERROR, "log_to_driver": False}
    if address == LOCAL:
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"There is no Ray cluster at {address!r}: {(str(error).splitlines() or [type(error).__name__])[0]}",
            advice=f"Start one with `ray start --head`, or say --ray {LOCAL}.",
            address=address,
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
