"""Where our time goes: routing as designed, and decode steps against the ideal of the same minutes."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.report import Report
from peers.case import Case, Outcome, median_and_quartiles
from peers.contest import Contest, speed
from peers.costs import DEPTHS
from peers.engines import Coterie, measure
from peers.ideal import Costs, Ideal, Served, ideal_step
from peers.routing import routing_table
from peers.sizes import MIB, Sizes, roomy_case

LONGEST_OVER_LAYERED = 1.3
LONGEST_OVER_FULL = 1.35
LEAST_OF_ROOMY = 0.9
COSTS = "costs"
AHEAD, PLAIN = "coterie", "coterie, no prefetch"
_GROWN = ". After the tokens that are not measured all runs wait until the cache has its memory"


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
    round are compared. Every case runs without prefetch, too: what it misses then is what has to be read. All runs wait
    until the cache has its memory: where that takes long, it would have another size in each of them.
    """
    tight, roomy = roomy_case(sizes, timeout_s)
    for number in range(rounds):
        contest.run(costs_case(sizes, timeout_s), [replace(ours, costs=True)], number)
        for case in cases:
            told = replace(ours, served=True, grown=True)
            contest.run(case, [told, replace(told, prefetch="off", name=PLAIN)], number)
            if case.name == tight:
                contest.run(roomy, [told], number)


def publish_beside_ideal(report: Report, contest: Contest, sizes: Sizes, cases: Sequence[Case]) -> None:
    """Tables and requirements of :func:`run_beside_ideal`."""
    if publish_ideal(report, contest, cases, note=_GROWN):
        _require_room(report, contest, sizes)
        report.values["beside the ideal"] = [{"round": key[0], **kept(one)} for key, one in contest.outcomes.items()]


def costs_case(sizes: Sizes, timeout_s: float) -> Case:
    """The run that measures what a step's parts and reads take."""
    return Case(
        name=COSTS, limit=None, warm=True, prompt_tokens=sizes.prompt, new_tokens=2, settle_tokens=0,
        timeout_s=timeout_s,
    )  # fmt: skip


def publish_ideal(
    report: Report, contest: Contest, cases: Sequence[Case], *, by_layer: bool = True, note: str = ""
) -> bool:
    """Decode steps of some cases beside the ideal, with requirements; whether costs have been measured.

    Args:
        report: Where they go.
        contest: Outcomes of these cases with prefetch and without, and of :func:`costs_case`, round by round.
        cases: The cases.
        by_layer: Whether the ideal by layer is required, too.
        note: Added to the caption.
    """
    rounds = {number: one for (number, case, _), one in contest.outcomes.items() if case == COSTS and not one.failure}
    if not rounds:
        print("What a step costs could not be measured.", file=sys.stderr)
        return False
    _publish_costs(report, list(rounds.values()))
    table = report.table(
        f"Decode steps against the ideal of the same round, medians of {len(rounds)} rounds (and extremes). Full "
        "overlap: all reads or all arithmetic, whichever takes longer, at the speed that both have while the other "
        "goes on. By layer: reads hidden behind their layer's resident experts only. Alone: with the speed that each "
        "has by itself. Read are the misses of the same steps without prefetch; those that fill the cache go to new "
        f"memory{note}:",
        (
            "case",
            "prefetch",
            "misses per token",
            "read to new memory",
            "measured, ms",
            "full overlap, ms",
            "ratio",
            "by layer, ms",
            "ratio",
            "full overlap, alone, ms",
            "by layer, alone, ms",
            "ratio",
            "ratio by layer, alone, were new memory for nothing",
        ),
    )
    for case in cases:
        for engine in (AHEAD, PLAIN):
            rows = [
                _beside(contest.outcomes[number, case.name, engine], contest.outcomes[number, case.name, PLAIN], costs)
                for number, costs in rounds.items()
                if all(_complete(contest, number, case, one) for one in (engine, PLAIN))
            ]
            if not rows:
                continue
            over_full = [row.step_s / row.together.foreseen for row in rows]
            over_layered = [row.step_s / row.ideal.layered for row in rows]
            table.rows.append(
                (
                    case.name,
                    "off" if engine == PLAIN else "default",
                    _spread([row.misses for row in rows], "{:.1f}"),
                    _spread([row.into_new_memory for row in rows], "{:.1f}"),
                    _spread([row.step_s for row in rows], "{:.1f}", 1e3),
                    _spread([row.together.foreseen for row in rows], "{:.1f}", 1e3),
                    _spread(over_full, "{:.2f}"),
                    _spread([row.together.layered for row in rows], "{:.1f}", 1e3),
                    _spread([row.step_s / row.together.layered for row in rows], "{:.2f}"),
                    _spread([row.ideal.foreseen for row in rows], "{:.1f}", 1e3),
                    _spread([row.ideal.layered for row in rows], "{:.1f}", 1e3),
                    _spread(over_layered, "{:.2f}"),
                    _spread([row.step_s / row.memory_for_nothing.layered for row in rows], "{:.2f}"),
                )
            )
            if engine == AHEAD:
                required = [("full overlap", over_full, LONGEST_OVER_FULL)]
                required += [("the ideal by layer, alone", over_layered, LONGEST_OVER_LAYERED)] if by_layer else []
                for what, ratios, most in required:
                    report.require(
                        f"time per token against {what}, {case.name}: at most {most}",
                        _spread(ratios, "{:.2f}"),
                        statistics.median(ratios) <= most,
                    )
    return True


def kept(outcome: Outcome) -> dict[str, object]:
    """An outcome as it is kept: misses of each step in place of hits and misses of each of its layers."""
    own = dict(outcome.own)
    if own.pop("served", None) is not None:
        own["misses"] = [step.misses for step in _served(outcome)]
    return {**asdict(outcome), "own": own}


def _complete(contest: Contest, number: int, case: Case, engine: str) -> bool:
    outcome = contest.outcomes.get((number, case.name, engine))
    return outcome is not None and bool(outcome.steps_s) and "served" in outcome.own


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """Decode steps of one run beside the ideal.

    Attributes:
        misses: Of its own, per step.
        into_new_memory: Misses without prefetch that fill the cache, per step.
        step_s: Seconds per step.
        ideal: With costs of each part by itself.
        together: With costs of both at once.
        memory_for_nothing: With costs of each part by itself, reads to new memory as fast as others.
    """

    misses: float
    into_new_memory: float
    step_s: float
    ideal: Ideal
    together: Ideal
    memory_for_nothing: Ideal


def _beside(outcome: Outcome, plain: Outcome, costs: Outcome) -> _Beside:
    own: Any = costs.own
    # Of as many steps as there are times of, the last.
    met, read = (_served(one)[-len(one.steps_s) :] for one in (outcome, plain))
    uses = statistics.mean(step.uses for step in read)

    def ideal(experts_s: float, bandwidth: float, new_bandwidth: float) -> Ideal:
        return ideal_step(
            read,
            Costs(
                rest_s=own["alone"]["rest_s"],
                expert_s=experts_s / uses,
                expert_bytes=own["expert_bytes"],
                bandwidth=bandwidth,
                new_bandwidth=min(bandwidth, new_bandwidth),
            ),
        )

    alone_s, bandwidth, new = own["alone"]["experts_s"], own["bandwidth"], own["bandwidth_new"]
    return _Beside(
        misses=statistics.mean(step.misses for step in met),
        into_new_memory=statistics.mean(step.into_new_memory for step in read),
        step_s=statistics.mean(outcome.steps_s),
        ideal=ideal(alone_s, bandwidth, new),
        together=ideal(own["beside"]["experts_s"], own["bandwidth_beside"], new),
        memory_for_nothing=ideal(alone_s, bandwidth, bandwidth),
    )


def _served(outcome: Outcome) -> list[Served]:
    """What the decode steps of a run found."""
    steps: Any = outcome.own["served"]
    return [Served(**step) for step in steps]


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
    new = [own["bandwidth_new"] for own in owns]
    table.rows.append(("reads to memory not used before, GB/s", _spread(new, "{:.2f}", 1e-9), "–"))


def _require_room(report: Report, contest: Contest, sizes: Sizes) -> None:
    """Hardly slower than with the same budget and 1 GiB more to live in."""
    tight, roomy = roomy_case(sizes, 0.0)
    pairs = zip(contest.of(tight, AHEAD), contest.of(roomy.name, AHEAD), strict=False)
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
