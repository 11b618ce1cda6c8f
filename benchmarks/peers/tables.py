"""The contest's outcomes as tables and requirements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.report import Report, Table
from peers.case import Outcome, median_and_quartiles
from peers.contest import Contest, Metric, speed

GIB = 1 << 30
_UNITS: dict[Metric, str] = {"decode": "tok/s", "prefill": "tok/s", "first token": "s", "whole run": "s"}


@dataclass(frozen=True)
class Requirement:
    """How many times as fast as a peer Coterie must be.

    Attributes:
        case: Name of the case.
        metric: What is compared.
        peers: Names of the engines; the fastest of them counts.
        at_least: The ratio.
    """

    case: str
    metric: Metric
    peers: tuple[str, ...]
    at_least: float


def case_table(report: Report, contest: Contest, case: str, metrics: Sequence[Metric], caption: str) -> None:
    """One case: a row for each engine."""
    speeds = [f"{metric}, {_UNITS[metric]}" for metric in metrics]
    table = report.table(
        caption,
        (
            "engine",
            *speeds,
            "read per token MiB",
            "read in all GiB",
            "hit rate",
            "anonymous + mapped GiB",
            "cgroup's peak GiB",
            "killed",
            "remarks",
        ),
    )
    for engine in contest.engines(case):
        outcomes = contest.of(case, engine)
        per_token = [one.bytes_per_token for one in outcomes if one.bytes_per_token is not None]
        rates = [one.own["decode_hit_rate"] for one in outcomes if "decode_hit_rate" in one.own]
        table.rows.append(
            (
                engine,
                *(_speeds(metric, outcomes) for metric in metrics),
                f"{median_and_quartiles(per_token)[0] / 2**20:.0f}" if per_token else "–",
                f"{median_and_quartiles([float(one.read_bytes) for one in outcomes])[0] / GIB:.2f}",
                f"{100 * median_and_quartiles([float(str(rate)) for rate in rates])[0]:.1f} %" if rates else "–",
                f"{max(max(one.resident, one.high_water) for one in outcomes) / GIB:.2f}",
                f"{max(one.usage for one in outcomes) / GIB:.2f}",
                str(sum(one.oom_kills for one in outcomes)),
                "; ".join(dict.fromkeys(one.failure for one in outcomes if one.failure)),
            )
        )


def _speeds(metric: Metric, outcomes: Sequence[Outcome]) -> str:
    values = [speed(metric, one) for one in outcomes]
    values = [1 / value if _UNITS[metric] == "s" else value for value in values if value]
    if not values:
        return "–"
    middle, low, high = median_and_quartiles(values)
    return f"{middle:.2f} ({low:.2f} … {high:.2f})"


def require_ratios(report: Report, contest: Contest, requirements: Sequence[Requirement], ours: str) -> None:
    """The required ratios, those of cases that have been run."""
    for one in requirements:
        ratio = contest.ratio(one.metric, one.case, ours, one.peers)
        if ratio is None:
            continue
        against = one.peers[0] if len(one.peers) == 1 else f"the best of {', '.join(one.peers)}"
        report.require(
            f"{one.metric}, {one.case}, against {against}: at least {one.at_least:g} ×",
            f"{ratio:.2f} ×",
            ratio >= one.at_least,
        )
        report.values[f"{one.case}, {one.metric}, ratio to {against}"] = ratio


def summarise(compared: Sequence[tuple[Contest, Sequence[Requirement]]], ours: str, caption: str, peers: str) -> Table:
    """What was compared in a few rows: medians, and the median ratio of a round.

    Args:
        compared: Outcomes, and what is compared of them.
        ours: Engine.
        caption: Of the table.
        peers: Heading of the column of peers.
    """
    table = Table(caption, ("", "Coterie", peers, "ratio"))
    for contest, one in ((contest, one) for contest, wanted in compared for one in wanted):
        ratio = contest.ratio(one.metric, one.case, ours, one.peers)
        if ratio is None:
            continue
        middles = {who: _middle(one.metric, contest.of(one.case, who)) for who in (ours, *one.peers)}
        rival = max(one.peers, key=lambda who: middles[who] or 0.0)
        cells = [_in_units(one.metric, middles[who]) for who in (ours, rival)]
        table.rows.append((f"{one.metric}, {one.case}", cells[0], f"{cells[1]} ({rival})", f"{ratio:.3g} ×"))
    return table


def _middle(metric: Metric, outcomes: Sequence[Outcome]) -> float | None:
    values = [value for one in outcomes if (value := speed(metric, one))]
    return median_and_quartiles(values)[0] if values else None


def _in_units(metric: Metric, middle: float | None) -> str:
    if middle is None:
        return "–"
    return f"{1 / middle:.1f} s" if _UNITS[metric] == "s" else f"{middle:.2f} tok/s"


def require_budgets(report: Report, contest: Contest, limits: dict[str, int], ours: str) -> None:
    """No kill, and no more memory than allowed.

    Args:
        report: Where they go.
        contest: The outcomes.
        limits: Case → budget.
        ours: Engine.
    """
    kills = sum(one.oom_kills for (_, _, who), one in contest.outcomes.items() if who == ours)
    report.require("no run of ours is killed for memory", str(kills), kills == 0)
    for case, limit in limits.items():
        outcomes = contest.of(case, ours)
        if outcomes:
            peak = max(max(one.resident, one.high_water) for one in outcomes)
            report.require(
                f"anonymous + mapped within the budget, {case}",
                f"{peak / GIB:.2f} of {limit / GIB:.2f} GiB",
                peak <= limit,
            )
