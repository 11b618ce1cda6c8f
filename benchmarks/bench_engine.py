"""How long others wait for one who asks the engine: until a request that was given up is gone, and while one is read.

- **Giving up**: a request is given up somewhere in its prompt, or in its answer, beside another one that is being
  answered. Measured is the time until its place and its memory are free. In a prompt that must take no longer than the
  slowest layer, in an answer no longer than a step.
- **Stalls**: while a long prompt is read, another request is being answered. Measured is the longest time between two
  of its tokens. It must take no longer than the slowest piece of the prompt and a step.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fullsize.files import Files
from harness.machine import wait_until_quiet
from harness.options import options
from harness.report import Report

SLACK_S = 0.02
"""For threads to be woken."""
_POLL_S = 0.0005


class Pace:
    """An observer that times layers of prompts, and whole passes."""

    def __init__(self) -> None:
        self.layers: list[float] = []
        self.pieces: list[float] = []
        self.steps: list[float] = []
        self._last: tuple[int, int, float, float] | None = None

    def on_event(self, event: object) -> None:
        """Notes when a layer's experts are about to be computed."""
        from coterie.passes.current import current
        from coterie.spec import ExpertsSelected

        if not isinstance(event, ExpertsSelected):
            return
        now, tokens = time.perf_counter(), current().tokens
        if self._last is not None:
            number, before, began, last = self._last
            if number == event.step:
                if tokens > 1:
                    self.layers.append(now - last)
                self._last = (number, tokens, began, now)
                return
            # From the first layer of one pass to that of the next.
            (self.pieces if before > 1 else self.steps).append(now - began)
        self._last = (event.step, tokens, now, now)


def until(condition: Callable[[], bool]) -> float:
    """Seconds until something is so."""
    began = time.perf_counter()
    while not condition():
        time.sleep(_POLL_S)
    return time.perf_counter() - began


def measure_giving_up(report: Report, engine: Any, pace: Pace, prompt: list[int], trials: int) -> None:
    """Adds how long it takes until a request is gone."""
    from coterie.generation.sampling import Sampling

    table = report.table(f"Given up, {trials} times:", ("where", "median, ms", "longest, ms", "slowest, ms"))
    draw = random.Random(0)
    beside = engine.submit(prompt[:8], Sampling(max_new_tokens=100_000, greedy=True))
    until(lambda: beside.phase == "decode")
    for phase in ("prefill", "decode"):
        taken: list[float] = []
        for _ in range(trials):
            asked = prompt if phase == "prefill" else prompt[:32]
            ticket = engine.submit(asked, Sampling(max_new_tokens=1000, greedy=True))
            until(lambda one=ticket, at=phase: one.phase == at)  # type: ignore[misc]
            time.sleep(draw.random() * 0.2)
            ticket.cancel()
            taken.append(until(lambda: engine.running == 1))
        slowest = max(pace.layers if phase == "prefill" else pace.steps)
        taken.sort()
        cells = (taken[len(taken) // 2], taken[-1], slowest)
        table.rows.append((phase, *(f"{1e3 * one:.1f}" for one in cells)))
        report.values[f"given up in {phase}"] = taken
        # Beside others a prompt waits for its turn between two pieces: then it is gone at once, or after their step.
        most = max(slowest, max(pace.steps)) + SLACK_S
        report.require(
            f"gone within a {'layer' if phase == 'prefill' else 'step'}, given up in {phase}",
            f"{1e3 * taken[-1]:.1f} ms of {1e3 * most:.1f}",
            taken[-1] <= most,
        )
    beside.cancel()
    until(lambda: engine.running == 0)
    report.require("nothing is held afterwards", f"{engine.governor.held} bytes", engine.governor.held == 0)


def measure_stalls(report: Report, engine: Any, pace: Pace, prompt: list[int]) -> None:
    """Adds how long an answer stops while a prompt is read."""
    from coterie.generation.sampling import Sampling

    arrivals: list[float] = []

    def read(ticket: Any) -> None:
        while (event := ticket.event()) is not None and type(event).__name__ not in ("Done", "Failed"):
            if type(event).__name__ == "Piece":
                arrivals.append(time.perf_counter())

    beside = engine.submit(prompt[:8], Sampling(max_new_tokens=100_000, greedy=True))
    reader = threading.Thread(target=read, args=(beside,))
    reader.start()
    until(lambda: len(arrivals) > 3)
    began = time.perf_counter()
    first = engine.submit(prompt, Sampling(max_new_tokens=1, greedy=True))
    first.result()
    ended = time.perf_counter()
    beside.cancel()
    reader.join()
    times = [began, *(one for one in arrivals if began < one < ended)]
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    longest, most = gaps[-1] if gaps else ended - began, max(pace.pieces) + 2 * max(pace.steps) + SLACK_S
    table = report.table(
        f"While a prompt of {len(prompt)} tokens was read in {ended - began:.1f} s:",
        ("tokens of the answer beside it", "longest time between two, ms", "slowest piece and step, ms"),
    )
    table.rows.append((str(len(gaps)), f"{1e3 * longest:.0f}", f"{1e3 * most:.0f}"))
    report.values["gaps"] = gaps
    report.require("an answer waits for no more than a piece", f"{1e3 * longest:.0f} ms", longest <= most)


def measure(report: Report, path: str | Path, *, memory: str, length: int, trials: int, piece: int) -> None:
    """Adds all of one model."""
    import coterie

    budget = {"expert_memory": memory} if memory.endswith("%") else {"memory": memory}
    model = coterie.load(path, max_context=None if memory.endswith("%") else 2 * length, **budget)  # type: ignore[arg-type]
    draw = random.Random(1)
    prompt = [draw.randrange(16, 4000) for _ in range(length)]
    model.coterie.add_observer(pace := Pace())
    with coterie.Engine(model, piece=piece) as engine:
        measure_stalls(report, engine, pace, prompt)
        measure_giving_up(report, engine, pace, prompt, trials)
    model.coterie.close()


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--length", type=int, default=4096, help="tokens of the long prompt (%(default)s)")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--memory", default="8GiB", help="budget (%(default)s)")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="of the full-size model (%(default)s)")
    given = parser.parse_args()
    wait_until_quiet(given.wait_quiet)
    report = Report("engine", "Waiting for one another", work=given.work_dir.parent, quick=given.quick)
    if given.quick:
        measure(report, "bundled", memory="50%", length=400, trials=3, piece=64)
    else:
        files = Files(given.work_dir, given.shape)
        if not files.store.exists():
            files.make("store")
        measure(report, files.store, memory=given.memory, length=given.length, trials=given.trials, piece=512)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
