"""A Ray of several processes on this machine, which all tests of workers share."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Its address; this process is connected to it."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Its processes look for what is sent to them where this one does.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        # Ray lets its workers run when nobody else wants to; on a busy machine that may take minutes.
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield "auto"
    finally:
        ray.shutdown()
