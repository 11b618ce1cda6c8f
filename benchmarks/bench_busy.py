"""Decoding beside another busy process, against decoding on an idle machine.

Threads that compute together wait for each other many times a token. Turning on the spot is quickest while each has a
processor. Beside a busy process there is one processor too few: the scheduler takes it from one thread after the other,
for milliseconds, and all others turn meanwhile. The ceiling is what is left of the machine: with N processors and one
busy process, (N - 1) / N of the idle speed if work could be divided at will, and half of it on two.

Two settings are compared: libgomp's own, which turns 300,000 times (``GOMP_SPINCOUNT``, which Coterie respects), and
Coterie's, which has threads sleep while other processes need the processors. Each runs in a process of its own with the
model open; every round times some decode steps of both, idle and beside a process that does nothing but turn, in an
order that rotates. Times of other processes on the machine spoil this benchmark more than any other: run it on a quiet
one.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fullsize.files import Files
from harness.machine import load_average, wait_until_quiet
from harness.options import options
from harness.paired import Timings, interleave
from harness.report import Report, Table
from harness.timed_steps import BusyProcess, TimedSteps

LEAST = 0.4
"""Of the idle speed, beside one busy process."""

SLOWER = 1.05
"""What idle steps may take of those with libgomp's setting: within the scatter."""

AS_BEFORE, NOW = "libgomp's setting", "coterie's"
SETTINGS: dict[str, dict[str, str | None]] = {
    AS_BEFORE: {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": None},
    NOW: {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None, "OMP_NUM_THREADS": None},
}
IDLE, BUSY = "idle", "beside a busy process"
SETTLE_S = 2.5
"""Steps for so long come before those that are timed: what other processes do is looked at four times a second, and a
second without them passes before threads turn on the spot again."""


def timed(steps: TimedSteps, state: str, count: int, at_most_s: float) -> float:
    """Seconds per decode step."""
    with ExitStack() as stack:
        if state == BUSY:
            stack.enter_context(BusyProcess())
        return steps.seconds_per_step(count, at_most_s, settle_s=SETTLE_S)


def measure(
    model: str | Path, memory: str | None, *, threads: int, rounds: int, steps: int, at_most_s: float
) -> Timings:
    """Times both settings, idle and busy, in turn."""
    with ExitStack() as stack:
        contestants = {}
        for name, env in SETTINGS.items():
            process = stack.enter_context(TimedSteps(model, memory=memory, threads=threads, env=env))
            for state in (IDLE, BUSY):
                contestants[f"{name}, {state}"] = partial(timed, process, state, steps, at_most_s)
        return interleave(contestants, rounds)


def add(report: Report, name: str, timings: Timings, *, threads: int) -> None:
    """Adds the table and requirements of a model."""
    rounds = len(next(iter(timings.rounds.values())))
    table: Table = report.table(
        f"{name}, {threads} threads, {rounds} interleaved rounds, load average {load_average():.2f}:",
        ("threads wait by", "machine", "ms/token, median", "quartiles", "speed, share of idle"),
    )
    for setting in SETTINGS:
        for state in (IDLE, BUSY):
            contestant = f"{setting}, {state}"
            low, high = timings.spread(contestant)
            share = 1 / timings.ratio(contestant, f"{setting}, {IDLE}")
            milliseconds = [f"{1e3 * value:.1f}" for value in (timings.median(contestant), low, high)]
            table.rows.append(
                (setting, state, milliseconds[0], f"{milliseconds[1]} … {milliseconds[2]}", f"{share:.2f}")
            )
    share = 1 / timings.ratio(f"{NOW}, {BUSY}", f"{NOW}, {IDLE}")
    report.require(f"{name}: at least {LEAST} of the idle speed beside a busy process", f"{share:.2f}", share >= LEAST)
    cost = timings.ratio(f"{NOW}, {IDLE}", f"{AS_BEFORE}, {IDLE}")
    report.require(f"{name}: idle steps take at most {SLOWER} of before", f"{cost:.2f}", cost <= SLOWER)
    report.values[name] = {"share of idle": share, "idle, to before": cost, "rounds": timings.rounds}


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2, help="default: all processors")
    parser.add_argument("--rounds", type=int, default=None, help="default: 12, or 2 with --quick")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="of the full-size model (%(default)s)")
    parser.add_argument("--memory", default="6GiB", help="budget of each of its two processes (%(default)s)")
    parser.add_argument("--no-fullsize", action="store_true", help="leave the full-size model out; so does --quick")
    given = parser.parse_args()
    rounds = given.rounds or (2 if given.quick else 12)
    wait_until_quiet(given.wait_quiet)
    report = Report("busy", "Decoding beside another busy process", work=given.work_dir.parent, quick=given.quick)
    bundled = measure(
        "bundled", "2GiB", threads=given.threads, rounds=rounds, steps=24 if given.quick else 64, at_most_s=6
    )
    add(report, "bundled", bundled, threads=given.threads)
    if not (given.no_fullsize or given.quick):
        files = Files(given.work_dir, given.shape)
        if not files.store.exists():
            files.make("store")
        large = measure(
            files.store, given.memory, threads=given.threads, rounds=max(2, rounds // 2), steps=24, at_most_s=8
        )
        add(report, given.shape, large, threads=given.threads)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
