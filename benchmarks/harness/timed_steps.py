"""Decode steps in a process of its own that keeps its model open, timed on demand.

Settings that a process is born with can so be compared in turn. Run as a program it opens a model and then, for each
line ``STEPS SECONDS SETTLE`` on standard input, prints the seconds per step of so many steps, or of those that fit into
that time, after steps for ``SETTLE`` seconds that are not timed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

BENCHMARKS = Path(__file__).resolve().parent.parent


class TimedSteps:
    """The process; a context that ends it.

    Args:
        model: A store, a checkpoint, or ``bundled``.
        memory: Its budget, or the share of experts that it has room for, such as ``25%``; None for the default.
        threads: Of torch.
        env: Changes to the environment; None removes a variable.
        source: A directory with the Coterie to use; by default, the one that is installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        memory: str | None,
        threads: int,
        env: Mapping[str, str | None],
        source: Path | None = None,
    ) -> None:
        command = [sys.executable, "-m", "harness.timed_steps", str(model), "--threads", str(threads)]
        command += [] if memory is None else ["--share" if memory.endswith("%") else "--memory", memory]
        paths = [str(BENCHMARKS)] if source is None else [str(BENCHMARKS), str(source)]
        environment = {**os.environ, **env, "PYTHONPATH": os.pathsep.join(paths)}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in environment.items() if value is not None},
        )
        self._answer()

    def __enter__(self) -> TimedSteps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def seconds_per_step(self, steps: int, at_most_s: float, *, settle_s: float = 0.0) -> float:
        """Times steps; see the module."""
        assert self._process.stdin is not None
        print(steps, at_most_s, settle_s, file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("The process that decodes has ended.")
        return line


class BusyProcess:
    """A process that does nothing but turn; a context that ends it."""

    def __enter__(self) -> BusyProcess:
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        time.sleep(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def main() -> int:
    """Opens the model and answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--memory")
    parser.add_argument("--share")
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    warnings.simplefilter("ignore")

    import torch

    from coterie.engine import load
    from coterie.engine.source import text_component
    from harness.generation import Decoding

    model = load(
        given.model,
        component=text_component(given.model),
        memory=given.memory,
        expert_memory=given.share,
        threads=given.threads,
    )
    vocabulary = model.config.get_text_config().vocab_size
    prompt = torch.randint(16, vocabulary, (1, 16), generator=torch.Generator().manual_seed(1))
    Decoding(model, prompt).steps(4)
    print("ready", flush=True)
    for line in sys.stdin:
        steps, at_most_s, settle_s = line.split()
        began = time.perf_counter()
        while time.perf_counter() - began < float(settle_s):
            Decoding(model, prompt).steps(8)
        decoding = Decoding(model, prompt)
        done, began = 0, time.perf_counter()
        while done < int(steps) and time.perf_counter() - began < float(at_most_s):
            decoding.steps(1)
            done += 1
        print((time.perf_counter() - began) / done, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
