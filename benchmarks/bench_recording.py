"""What recording a profile costs while a model generates, with and without what experts contribute.

A recorder is told 97 times a token at 48 layers: of the step, and of each layer's choice and of how its experts were
served; with contributions, 48 times more, of the norms of what each expert added. A norm of 2,048 numbers reads 8 KiB
that were just written: some microseconds a layer. What remains is Python: events, and rows copied into buffers that are
counted every few hundred tokens, one bank at a time, so that no step pays for all. The database is written by another
thread, which takes its share of a core now and then: that is in the figures, because it runs meanwhile.

Steps of one sequence alternate between no recorder and each kind, in an order drawn anew each round, so that contexts
of all kinds are equally long and a busy moment hits all. ``--model`` measures any store or checkpoint; without it the
model in the package serves, whose steps are so short that the share is an upper bound for any larger one.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.machine import wait_until_quiet
from harness.options import options
from harness.report import Report
from harness.watched_steps import COLUMNS, NONE, WatchedSteps, add_rows, require_cheap

MOST = 0.05
CAPACITY = "100%"


def recorders(model: Any, folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Kinds of recorders by name, each with a profile of its own; none first."""
    found: dict[str, Any] = {NONE: None}
    for name, contributions in (("routing", False), ("with contributions", True)):
        context = model.coterie.record_profile(folder / f"{name}.db", contributions=contributions)
        found[name] = stack.enter_context(context)
        # Each step adds the one that it measures.
        model.coterie.remove_observer(found[name])
    return found


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="bundled", help="a store, a checkpoint, or bundled (%(default)s)")
    parser.add_argument("--expert-memory", default=CAPACITY, help="size of the experts' arena (%(default)s)")
    parser.add_argument("--rounds", type=int, default=None, help="default: 300, or 20 with --quick")
    given = parser.parse_args()
    from coterie.engine import load
    from coterie.engine.source import text_component

    wait_until_quiet(given.wait_quiet)
    report = Report("recording", "The cost of recording a profile", work=given.work_dir.parent, quick=given.quick)
    model = load(
        given.model,
        component=text_component(given.model),
        expert_memory=given.expert_memory,
        threads=given.threads,
    )
    rounds = given.rounds or (20 if given.quick else 300)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        steps = WatchedSteps(model, prompt=32)
        timings = steps.compare(recorders(model, Path(folder), stack), rounds, unmeasured=max(10, rounds // 5))
    banks = model.coterie.expert_banks
    shape = banks[0]
    table = report.table(
        f"{model.coterie.source.name}: {len(banks)} layers × {shape.num_experts} experts, top {shape.choices}, "
        f"{given.expert_memory} of the experts in memory, {given.threads} threads, {rounds} rounds:",
        ("recorder", *COLUMNS),
    )
    shares = add_rows(table, timings)
    # The package's model is a thousandth of those that the bound is for.
    if given.model != "bundled":
        require_cheap(report, shares, MOST)
    report.values["rounds"] = timings.rounds
    model.coterie.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
