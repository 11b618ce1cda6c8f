"""Where our time goes: routing as designed, and decode steps against the ideal of the same minutes."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.report import Report
from peers.case import Case, Outcome, median_and_quartiles
from peers.contest import Contest, speed
from peers.costs import DEPTHS
from peers.engines import Coterie, measure
from peers.ideal import Costs, Ideal, ideal_step
from peers.routing import routing_table
from peers.sizes import MIB, Sizes, roomy_case

LONGEST_OVER_IDEAL = 1.3
LEAST_OF_ROOMY = 0.9
COSTS = "costs"


def record_routing(report: Report, contest: Contest, sizes: Sizes, ours: Coterie, work: Path, timeout_s: float) -> None:
    """A long generation in memory, and what caches of several sizes would find of it."""
    trace = work / f"{sizes.shape}-routing.npz"
    case = Case(
        name="routing", limit=None, warm=True, prompt_tokens=sizes.prompt, new_tokens=sizes.trace + 1, settle_tokens=0,
        timeout_s=timeout_s,
    )  # fmt: skip
    outcome = measure(replace(ours, trace=trace), case, contest.model)
    if outcome.failure:
        print(f"The routing cannot be recorded: {outcome.failure}", file=sys.stderr)
        return
    routing_table(report, trace)


def run_beside_ideal(
    contest: Contest, sizes: Sizes, ours: Coterie, cases: Sequence[Case], rounds: int, timeout_s: float
) -> None:
    """In each round what parts and reads cost, then these cases of ours, one after the other: minutes apart, not hours.

    The machine's disk and processor are not the same from one hour to the next, so only costs and steps of the same
    round are compared. Hits and misses are those of the very steps that are timed.
    """
    tight, roomy = roomy_case(sizes, timeout_s)
    costs = Case(
        name=COSTS, limit=None, warm=True, prompt_tokens=sizes.prompt, new_tokens=2, settle_tokens=0,
        timeout_s=timeout_s,
    )  # fmt: skip
    for number in range(rounds):
        contest.run(costs, [replace(ours, costs=True)], number)
        for case in cases:
            pair = [case, roomy] if case.name == tight else [case]
            for one in pair if number % 2 else reversed(pair):
                contest.run(one, [replace(ours, served=True)], number)


def publish_beside_ideal(report: Report, contest: Contest, sizes: Sizes, cases: Sequence[Case], engine: str) -> None:
    """Tables and requirements of :func:`run_beside_ideal`."""
    rounds = {number: one for (number, case, _), one in contest.outcomes.items() if case == COSTS and not one.failure}
    if not rounds:
        print("What a step costs could not be measured.", file=sys.stderr)
        return
    _publish_costs(report, list(rounds.values()))
    table = report.table(
        f"Decode steps against the ideal of the same round, medians of {len(rounds)} rounds (and extremes): reads "
        "hidden behind their layer's resident experts, and behind the whole step. Both at once: with what experts and "
        "reads take while the other goes on:",
        (
            "case",
            "misses per token",
            "measured, ms",
            "ideal by layer, ms",
            "ratio",
            "ideal by layer, both at once, ms",
            "ratio",
            "ideal of full overlap, ms",
        ),
    )
    for case in cases:
        found = {number: contest.outcomes.get((number, case.name, engine)) for number in rounds}
        rows = [_beside(one, rounds[number], case) for number, one in found.items() if one and one.steps_s]
        if not rows:
            continue
        misses, steps, ideals, together = (list(column) for column in zip(*rows, strict=True))
        ratios = [step / ideal.layered for step, ideal in zip(steps, ideals, strict=True)]
        shared = [step / ideal.layered for step, ideal in zip(steps, together, strict=True)]
        table.rows.append(
            (
                case.name,
                _spread(misses, "{:.1f}"),
                _spread(steps, "{:.1f}", 1e3),
                _spread([ideal.layered for ideal in ideals], "{:.1f}", 1e3),
                _spread(ratios, "{:.2f}"),
                _spread([ideal.layered for ideal in together], "{:.1f}", 1e3),
                _spread(shared, "{:.2f}"),
                _spread([ideal.foreseen for ideal in ideals], "{:.1f}", 1e3),
            )
        )
        ratio = statistics.median(ratios)
        report.require(
            f"time per token against the ideal by layer, {case.name}: at most {LONGEST_OVER_IDEAL}",
            f"{ratio:.2f}",
            ratio <= LONGEST_OVER_IDEAL,
        )
    _require_room(report, contest, sizes, engine)
    report.values["beside the ideal"] = [
        {"round": key[0], "case": key[1], "own": one.own, "steps_s": one.steps_s}
        for key, one in contest.outcomes.items()
    ]


def _beside(outcome: Outcome, costs: Outcome, case: Case) -> tuple[float, float, Ideal, Ideal]:
    """Misses per token, seconds per step, the ideal, and that with both at once."""
    served: Any = outcome.own["served"]
    # Of as many steps as there are times of, the last.
    steps = served[-len(outcome.steps_s) :]
    misses = statistics.mean(sum(missed for _, missed in step) for step in steps)
    own: Any = costs.own
    uses = statistics.mean(sum(hits + missed for hits, missed in step) for step in steps)

    def ideal(experts_s: float, bandwidth: float) -> Ideal:
        return ideal_step(
            steps,
            Costs(
                rest_s=own["alone"]["rest_s"],
                expert_s=experts_s / uses,
                expert_bytes=own["expert_bytes"],
                bandwidth=bandwidth,
            ),
        )

    return (
        misses,
        statistics.mean(outcome.steps_s),
        ideal(own["alone"]["experts_s"], own["bandwidth"]),
        ideal(own["beside"]["experts_s"], own["bandwidth_beside"]),
    )


def _publish_costs(report: Report, outcomes: Sequence[Outcome]) -> None:
    owns: list[Any] = [one.own for one in outcomes]
    nbytes = owns[0]["expert_bytes"]
    table = report.table(
        f"The disk: direct reads of {nbytes / MIB:.2f} MiB at random places, medians of {len(owns)} rounds (and "
        "extremes):",
        ("at once", "GB/s"),
    )
    for depth in DEPTHS:
        table.rows.append((str(depth), _spread([own["disk"][str(depth)] for own in owns], "{:.2f}", 1e-9)))
    table = report.table(
        "A decode step with everything in memory and direct reads, each by itself and both at once, likewise:",
        ("", "by itself", "both at once"),
    )
    for label, part in (("all but experts, ms", "rest_s"), ("experts, ms", "experts_s")):
        alone, beside = ([own[way][part] for own in owns] for way in ("alone", "beside"))
        table.rows.append((label, _spread(alone, "{:.1f}", 1e3), _spread(beside, "{:.1f}", 1e3)))
    alone, beside = ([own[name] for own in owns] for name in ("bandwidth", "bandwidth_beside"))
    table.rows.append(("reads, GB/s", _spread(alone, "{:.2f}", 1e-9), _spread(beside, "{:.2f}", 1e-9)))


def _require_room(report: Report, contest: Contest, sizes: Sizes, engine: str) -> None:
    """Hardly slower than with the same budget and 1 GiB more to live in."""
    tight, roomy = roomy_case(sizes, 0.0)
    pairs = zip(contest.of(tight, engine), contest.of(roomy.name, engine), strict=False)
    shares = [speed("decode", one) / speed("decode", more) for one, more in pairs if speed("decode", more)]
    if shares:
        share = statistics.median(shares)
        report.require(
            f"decode speed, {tight}, of that in {roomy.name}: at least {LEAST_OF_ROOMY}",
            f"{_spread(shares, '{:.2f}')}",
            share >= LEAST_OF_ROOMY,
        )


def _spread(values: Sequence[float], form: str, factor: float = 1.0) -> str:
    middle, low, high = (form.format(factor * value) for value in median_and_quartiles([*values]))
    return middle if low == middle == high else f"{middle} ({low} … {high})"
