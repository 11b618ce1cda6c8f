"""Where our time goes: routing as designed, the disk, and decode steps against the ideal at its bandwidth."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.raw_disk import raw_bandwidth
from harness.report import Report
from peers.case import Case
from peers.contest import Contest
from peers.engines import Coterie, measure
from peers.ideal import Costs, ideal_step
from peers.routing import routing_table
from peers.sizes import MIB, Sizes, contest_cases

DEPTHS = (1, 2, 4, 8)
LONGEST_OVER_IDEAL = 1.3


def bandwidths(report: Report, store: Path, read_nbytes: int, quick: bool) -> float:
    """Measures the disk at several depths; returns the best bytes per second."""
    file = max(store.rglob("*.safetensors"), key=lambda path: path.stat().st_size if "experts" in path.parts else 0)
    rounds = 1 if quick else 3
    seconds = 0.2 if quick else 1.0
    taken: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for number in range(rounds):
        for depth in DEPTHS:
            taken[depth].append(raw_bandwidth(file, read_nbytes, depth=depth, seconds=seconds, seed=number))
    table = report.table(
        f"The disk: direct reads of {read_nbytes / MIB:.2f} MiB at random places, medians of {rounds} rounds:",
        ("at once", "GB/s"),
    )
    best = 0.0
    for depth, values in taken.items():
        table.rows.append((str(depth), f"{statistics.median(values) / 1e9:.2f}"))
        best = max(best, statistics.median(values))
    report.values["disk"] = {str(depth): values for depth, values in taken.items()}
    return best


def analyse(
    report: Report, contest: Contest, sizes: Sizes, ours: Coterie, work: Path, timeout_s: float, quick: bool
) -> None:
    """Where our time goes: routing, and decode steps against the ideal at the disk's bandwidth."""
    trace = work / f"{sizes.shape}-routing.npz"
    watched = Coterie(ours.store, ours.threads, name="coterie, watched", analysis=trace)
    warm = Case(
        name="routing", limit=None, warm=True, prompt_tokens=sizes.prompt, new_tokens=sizes.trace + 1, settle_tokens=0,
        timeout_s=timeout_s,
    )  # fmt: skip
    outcome = measure(watched, warm, contest.model)
    if outcome.failure:
        print(f"The routing cannot be recorded: {outcome.failure}", file=sys.stderr)
        return
    routing_table(report, trace)
    parts = outcome.own["parts"]
    assert isinstance(parts, dict)
    d = contest.model.dimensions
    expert_bytes = int(str(outcome.own["expert_bytes"]))
    costs = Costs(
        rest_s=sum(seconds for part, seconds in parts.items() if part not in ("experts", "waiting")),
        expert_s=parts["experts"] / (d.layers * d.top_k),
        expert_bytes=expert_bytes,
        bandwidth=bandwidths(report, ours.store, expert_bytes, quick),
    )
    cases = [case for case, _ in contest_cases(sizes, timeout_s) if case.name.startswith("start in")]
    against_ideal(report, contest, ours, cases, costs, work)


def against_ideal(
    report: Report, contest: Contest, ours: Coterie, cases: Sequence[Case], costs: Costs, work: Path
) -> None:
    """Measured decode steps beside those that misses and hits of the same steps allow at best."""
    table = report.table(
        f"Decode steps against the ideal, ms: dense and all else {1e3 * costs.rest_s:.1f}, an expert "
        f"{1e3 * costs.expert_s:.3f}, {costs.bandwidth / 1e9:.2f} GB/s; reads hidden within their layer, and within "
        "the whole step:",
        ("case", "misses per token", "measured", "ideal by layer", "ratio", "ideal of full overlap"),
    )
    routing = work / ".served.npz"
    for case in cases:
        timed = [step for one in contest.of(case.name, ours.name) for step in one.steps_s]
        if not timed:
            continue
        found = measure(Coterie(ours.store, ours.threads, name="watched", analysis=routing), case, contest.model)
        routing.unlink(missing_ok=True)
        served = found.own.get("served")
        if not isinstance(served, list) or found.failure:
            print(f"{case.name}: hits and misses cannot be recorded: {found.failure}", file=sys.stderr)
            continue
        steps = served[case.settle_tokens :]
        ideal = ideal_step(steps, costs)
        measured = statistics.mean(timed)
        misses = statistics.mean(sum(missed for _, missed in step) for step in steps)
        ratio = measured / ideal.layered
        step, layered, foreseen = (f"{1e3 * one:.1f}" for one in (measured, ideal.layered, ideal.foreseen))
        table.rows.append((case.name, f"{misses:.1f}", step, layered, f"{ratio:.2f}", foreseen))
        report.require(
            f"time per token against the ideal by layer, {case.name}: at most {LONGEST_OVER_IDEAL}",
            f"{ratio:.2f}",
            ratio <= LONGEST_OVER_IDEAL,
        )
