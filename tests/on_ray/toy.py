"""Work without a model: what is tested is who does it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coterie.cluster.workers import WorkerFacts
from coterie.errors import CheckpointNotFoundError, InputError

FACTS = WorkerFacts(models={"m": "abc"}, releases={"torch": "2"}, kernels="avx2")


@dataclass(frozen=True)
class Shard:
    """A number to be squared, with what goes wrong meanwhile.

    Attributes:
        number: The number.
        trouble: ``kill`` and a file: the process is killed the first time. ``always``: every time. ``error``: it is
            refused.
        file: That file.
        seconds: How long it takes.
    """

    number: int
    trouble: str = ""
    file: str = ""
    seconds: float = 0.0


class Toy:
    """Squares numbers."""

    def run(self, shard: Shard) -> tuple[int, int]:
        """The square, and who computed it."""
        time.sleep(shard.seconds)
        if shard.trouble == "error":
            raise InputError(f"{shard.number} is no number.", path=Path("x"))
        if shard.trouble == "always":
            os.kill(os.getpid(), signal.SIGKILL)
        if shard.trouble == "kill":
            try:
                Path(shard.file).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return shard.number**2, os.getpid()


@dataclass(frozen=True)
class ToyWork:
    """What each worker does.

    Attributes:
        facts: What it says that it has open.
        trouble: ``missing``: it cannot open it. ``killed``: it is killed while it does.
    """

    facts: WorkerFacts = FACTS
    trouble: str = ""

    @contextmanager
    def open(self) -> Iterator[tuple[Toy, WorkerFacts]]:
        if self.trouble == "missing":
            raise CheckpointNotFoundError("There is no directory /models/m.")
        if self.trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        yield Toy(), self.facts
