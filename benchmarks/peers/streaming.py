"""Engines that read experts while they decode: whole answers, every token timed, idle and beside one busy process.

In each round, first what arithmetic and reads cost in these minutes, then every engine in turn, then those that count
beside a process that does nothing but turn. BigMoeOnEdge takes part with each size of its cache; beside the busy
process with the size that has been its best so far. llama.cpp's server leaves its experts to the kernel's page cache,
and is ended after a while: its tokens until then say how fast it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.report import Report
from peers.analysis import AHEAD, COSTS, PLAIN, costs_case, kept, publish_ideal
from peers.big_moe import NAME, BigMoe
from peers.case import Case, Outcome, median_and_quartiles
from peers.contest import Contest, speed
from peers.engines import Coterie, Engine, LlamaOverHttp
from peers.sizes import GIB, Sizes, streaming_cases
from peers.tables import Requirement, case_table, require_budgets, require_ratios
from peers.time_per_token import Curve, time_per_token_figure

BEFORE = "coterie before"
TIMES_AS_FAST = 2.5
LATEST_FIRST_TOKEN = 1.05
"""Of the earlier commit's time: within the scatter."""
LEAST_MEMORY = 0.9
LEAST_BESIDE_BUSY = 0.5
FIGURE = "peers_streaming"


@dataclass(frozen=True, kw_only=True)
class Contestants:
    """Who takes part.

    Attributes:
        ours: Coterie.
        before: Coterie of an earlier commit; None for none.
        big_moe: BigMoeOnEdge with each size of its cache; empty where it is not here.
        server: llama.cpp's server.
    """

    ours: Coterie
    before: Coterie | None
    big_moe: Sequence[BigMoe]
    server: LlamaOverHttp


def run_streaming(
    contest: Contest, sizes: Sizes, who: Contestants, rounds: int, timeout_s: float, server_timeout_s: float
) -> None:
    """Runs all rounds.

    Args:
        contest: Where outcomes go.
        sizes: How large.
        who: The engines.
        rounds: How many.
        timeout_s: A run ends after that.
        server_timeout_s: One of llama.cpp's server after that.
    """
    idle, busy = streaming_cases(sizes, timeout_s)
    told = replace(who.ours, served=True, memory_after=sizes.memory_after)
    more = [who.before] if who.before is not None else []
    for number in range(rounds):
        contest.run(costs_case(sizes, timeout_s), [replace(who.ours, costs=True)], number)
        everyone: list[Engine] = [told, replace(told, prefetch="off", name=PLAIN), *more, *who.big_moe, who.server]
        _in_turn(contest, idle, everyone, number, who.server, server_timeout_s)
        best = best_big_moe(contest, idle.name)
        rivals = [one for one in who.big_moe if one.name == best]
        _in_turn(contest, busy, [told, *rivals, who.server], number, who.server, server_timeout_s)


def _in_turn(
    contest: Contest, case: Case, engines: Sequence[Engine], number: int, server: Engine, server_timeout_s: float
) -> None:
    first = number % len(engines)
    for engine in [*engines[first:], *engines[:first]]:
        own = replace(case, timeout_s=min(case.timeout_s, server_timeout_s)) if engine is server else case
        contest.run(own, [engine], number)


def best_big_moe(contest: Contest, case: str) -> str | None:
    """Name of BigMoeOnEdge with the size of cache that decodes fastest, by the median of rounds; None without it."""
    names = [name for name in contest.engines(case) if name.startswith(NAME)]
    return max(names, key=lambda name: _middle_speed(contest.of(case, name)), default=None)


def _middle_speed(outcomes: Sequence[Outcome]) -> float:
    return statistics.median(speed("decode", one) for one in outcomes)


def strongest(contest: Contest, sizes: Sizes) -> list[Requirement]:
    """The comparisons with the strongest peer that has taken part: BigMoeOnEdge at its best; empty without it."""
    idle, busy = streaming_cases(sizes, 0.0)
    best = best_big_moe(contest, idle.name)
    if best is None:
        return []
    beside = tuple(name for name in contest.engines(busy.name) if name.startswith(NAME))
    return [
        Requirement(idle.name, "decode", (best,), TIMES_AS_FAST),
        Requirement(busy.name, "decode", beside, 1.0),
        Requirement(idle.name, "first token", (best,), 1.0),
        Requirement(idle.name, "whole run", (best,), 1.0),
    ]


def publish_streaming(report: Report, contest: Contest, sizes: Sizes) -> None:
    """Tables, the figure and requirements of :func:`run_streaming`."""
    idle, busy = streaming_cases(sizes, 0.0)
    best = best_big_moe(contest, idle.name)
    left_out = "" if best is not None else f" {NAME} was left out: its program was not given with --big-moe."
    for case in (idle, busy):
        caption = (
            f"{case.name}, every one of them measured: prompt of {case.prompt_tokens} tokens, "
            f"{len(contest.of(case.name, AHEAD))} rounds.{left_out}"
        )
        case_table(report, contest, case.name, ("first token", "prefill", "decode", "whole run"), caption)
    _publish_big_moe(report, contest, idle.name)
    shown = [name for name in (AHEAD, best, "llama-server") if name is not None]
    curves = {case.name: _curves(contest, case.name, shown) for case in (idle, busy)}
    report.figure(FIGURE, "Time per token from the first to the last", lambda: time_per_token_figure(curves))
    publish_ideal(report, contest, [idle], by_layer=False)
    require_ratios(report, contest, strongest(contest, sizes), AHEAD)
    _require_first_token(report, contest, idle.name)
    _require_memory(report, contest, idle.name, sizes.memory_after)
    shares = _by_round(contest, (busy.name, AHEAD), (idle.name, AHEAD), lambda one: speed("decode", one))
    if shares:
        share = statistics.median(shares)
        report.require(
            f"decode beside a busy process: at least {LEAST_BESIDE_BUSY} of the idle speed",
            f"{share:.2f}",
            share >= LEAST_BESIDE_BUSY,
        )
    require_budgets(report, contest, {case.name: sizes.streaming_limit for case in (idle, busy)}, AHEAD)
    report.values["outcomes"] = [{"round": key[0], **kept(one)} for key, one in contest.outcomes.items()]


def _publish_big_moe(report: Report, contest: Contest, case: str) -> None:
    names = [name for name in contest.engines(case) if name.startswith(NAME)]
    if not names:
        return
    table = report.table(
        f"{NAME} by its own account, medians; the hit rate is that of the prompt, too:",
        ("cache", "decode, tok/s", "hit rate", "experts in memory, GiB", "arithmetic, ms/token", "reads, ms/token"),
    )
    for name in names:
        outcomes = contest.of(case, name)
        own = {key: _middle_figure(outcomes, key) for key in ("hit_rate", "resident_mib", "compute_s", "reads_s")}
        cells = [
            "–" if own[key] is None else form.format(factor * own[key])
            for key, form, factor in (
                ("hit_rate", "{:.1f} %", 1.0),
                ("resident_mib", "{:.2f}", 1 / 1024),
                ("compute_s", "{:.0f}", 1e3),
                ("reads_s", "{:.0f}", 1e3),
            )
        ]
        table.rows.append((name.removeprefix(f"{NAME}, "), f"{_middle_speed(outcomes):.2f}", *cells))


def _middle_figure(outcomes: Sequence[Outcome], key: str) -> float | None:
    found = [float(str(one.own[key])) for one in outcomes if key in one.own]
    return statistics.median(found) if found else None


def _curves(contest: Contest, case: str, engines: Sequence[str]) -> list[Curve]:
    """Median over rounds of each token's time, of those rounds that came so far."""
    curves = []
    for engine in engines:
        rounds = [one.steps_s for one in contest.of(case, engine) if one.expected and one.steps_s]
        longest = max(map(len, rounds), default=0)
        steps = [statistics.median(one[at] for one in rounds if at < len(one)) for at in range(longest)]
        if steps:
            curves.append(Curve(engine, steps))
    return curves


def _require_first_token(report: Report, contest: Contest, case: str) -> None:
    ratios = _by_round(contest, (case, AHEAD), (case, BEFORE), lambda one: one.first_token_s)
    if ratios:
        ratio = statistics.median(ratios)
        report.require(
            f"first token: at most {LATEST_FIRST_TOKEN} of an earlier commit's time",
            f"{ratio:.2f}",
            ratio <= LATEST_FIRST_TOKEN,
        )


def _require_memory(report: Report, contest: Contest, case: str, after: int) -> None:
    """Expert memory, of what the budget allows."""
    owns = [one.own for one in contest.of(case, AHEAD) if "memory_after" in one.own]
    shares = [float(str(own["memory_after"])) / float(str(own["capacity"])) for own in owns]
    if not shares:
        return
    middle, low, high = median_and_quartiles(shares)
    allowed = statistics.median(float(str(own["capacity"])) for own in owns) / GIB
    report.require(
        f"expert memory after {after} decoded tokens: at least {LEAST_MEMORY:.0%} of the {allowed:.2f} GiB allowed",
        f"{middle:.0%} ({low:.0%} … {high:.0%})",
        middle >= LEAST_MEMORY,
    )


def _by_round(
    contest: Contest, one: tuple[str, str], other: tuple[str, str], figure: Callable[[Outcome], float | None]
) -> list[float]:
    """Ratios of a figure of two runs of the same round, each a case and an engine."""
    ratios = []
    for number in sorted({number for number, case, _ in contest.outcomes if case != COSTS}):
        pair = [contest.outcomes.get((number, *key)) for key in (one, other)]
        values = [figure(outcome) if outcome is not None and outcome.expected else None for outcome in pair]
        if values[0] is not None and values[1]:
            ratios.append(values[0] / values[1])
    return ratios
