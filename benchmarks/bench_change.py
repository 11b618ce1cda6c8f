"""Decode steps of this tree, against those of an earlier commit of it.

A change that moves code must not cost time. Each tree runs in a process of its own that keeps its model open, with a
native library that its own sources were compiled to; every round times some decode steps of both, in an order that
rotates, of the same prompt and the same tokens. The ratio is the median over rounds of the ratio within one round, so a
busy minute hits both.

- **In memory**: all experts of the bundled model; in bfloat16 (layers as transformers computes them, experts by
  Coterie) and as a store in int4 (whole layers by the native library).
- **A quarter in memory**: most steps read experts, from the page cache where the disk is fast.
- **Full size**: a model of the shape of Qwen3-30B-A3B in int4. The same tokens are decoded in each round, so their
  experts are in memory after the first one.
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
from harness.timed_steps import TimedSteps
from harness.trees import ROOT, checked_out

BEFORE, NOW = "before", "now"

SLOWER = 1.03
"""What steps may take of those before: within the scatter."""


def measure(
    trees: dict[str, Path], model: str | Path, memory: str, *, threads: int, rounds: int, steps: int
) -> Timings:
    """Times both trees in turn."""
    with ExitStack() as stack:
        contestants = {}
        for name, tree in trees.items():
            process = TimedSteps(model, memory=memory, threads=threads, env={}, source=tree / "src")
            stack.enter_context(process)
            # Experts that are not in memory yet are read now.
            process.seconds_per_step(steps, 600)
            contestants[name] = partial(process.seconds_per_step, steps, 60)
        return interleave(contestants, rounds)


def add(report: Report, table: Table, name: str, timings: Timings) -> None:
    """Adds a row of the table and its requirement."""
    cells = [f"{1e3 * timings.median(tree):.2f}" for tree in (BEFORE, NOW)]
    ratios = sorted(now / before for now, before in zip(timings.rounds[NOW], timings.rounds[BEFORE], strict=True))
    ratio = timings.ratio(NOW, BEFORE)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    table.rows.append((name, *cells, f"{ratio:.3f}", f"{low:.3f} … {high:.3f}"))
    report.require(f"{name}: at most {SLOWER} of the time before", f"{ratio:.3f}", ratio <= SLOWER)
    report.values[name] = {"ratio": ratio, "rounds": timings.rounds}


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument(
        "--before", default="322fea17", help="the other commit (%(default)s: before several requests at once)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2, help="default: all processors")
    parser.add_argument("--rounds", type=int, default=None, help="default: 40, or 2 with --quick")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="of the full-size model (%(default)s)")
    parser.add_argument("--no-fullsize", action="store_true", help="leave the full-size model out; so does --quick")
    given = parser.parse_args()
    wait_until_quiet(given.wait_quiet)
    rounds = given.rounds or (2 if given.quick else 40)
    given.work_dir.mkdir(parents=True, exist_ok=True)
    report = Report("change", "Decode steps before and now", work=given.work_dir.parent, quick=given.quick)
    trees = {BEFORE: checked_out(given.before, given.work_dir), NOW: ROOT}
    int4 = given.work_dir / "bundled-int4-store"
    if not int4.exists():
        from coterie.extraction import extract

        extract("bundled", int4, scheme="int4", dense_scheme="int4")
    table = report.table(
        f"{given.threads} threads, {rounds} interleaved rounds, {given.before} and now; "
        f"load average {load_average():.2f}:",
        ("model", "before, ms/token", "now, ms/token", "now / before", "quartiles of the ratio"),
    )
    timed = partial(measure, trees, threads=given.threads, rounds=rounds, steps=8 if given.quick else 48)
    add(report, table, "bundled, bfloat16, in memory", timed("bundled", "2GiB"))
    add(report, table, "bundled, int4, in memory", timed(int4, "2GiB"))
    add(report, table, "bundled, bfloat16, a quarter in memory", timed("bundled", "25%"))
    if not (given.no_fullsize or given.quick):
        files = Files(given.work_dir, given.shape)
        if not files.store.exists():
            files.make("store")
        large = measure(trees, files.store, "9GiB", threads=given.threads, rounds=max(2, rounds // 4), steps=24)
        add(report, table, f"{given.shape}, int4", large)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
