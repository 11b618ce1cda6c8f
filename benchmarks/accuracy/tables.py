"""The tables of forecasts beside what was measured, and what is required of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from accuracy.kept import Kept
from accuracy.replayed import Forecasted
from accuracy.runs import Tried
from harness.report import Report

MIB = 1 << 20
MOST_OVER = 0.10
"""How much more memory than the process came to hold a plan may say."""
LEAST_INSIDE = 0.9
MOST_OFF = 0.20
"""How far what a probe says may be from what is measured."""


def memory(report: Report, runs: Sequence[Tried]) -> None:
    """What was planned beside the peak of the process, by part as far as it can be told apart."""
    table = report.table(
        "Memory in MiB, planned / measured. *Opened* is the process with everything that is not an expert; *experts* "
        "are those that fit; *the rest* is what keys, values, activations, buffers and libraries add at the peak, with "
        "prompts of many lengths up to the whole context. Planned is the plan without its margin:",
        ("model", "budget", "context", "opened", "experts", "the rest", "peak", "planned for each measured"),
    )
    least, most = 2.0, 0.0
    for run in runs:
        said, came = run.planned["memory"], run.measured
        opened = said["process_nbytes"] + said["dense_nbytes"]
        experts = min(said["expert_nbytes"], run.experts)
        planned = said["held_nbytes"]
        ratio = planned / run.peak
        least, most = min(least, ratio), max(most, ratio)
        table.rows.append(
            (
                run.subject.name,
                run.budget,
                str(run.subject.context),
                _both(opened, came["loaded"]),
                _both(experts, came["committed"]),
                _both(planned - opened - experts, run.peak - came["loaded"] - came["committed"]),
                _both(planned, run.peak),
                f"{ratio:.3f}",
            )
        )
    report.require("memory is never planned below what is measured", f"{least:.3f} of it at the least", least >= 1)
    report.require("and is within 10 % of it", f"{most:.3f} of it at the most", most <= 1 + MOST_OVER)


def hits(report: Report, runs: Sequence[Tried]) -> list[Forecasted]:
    """Hit rates of models that ran; returns them by what they are about."""
    table = report.table(
        "Hit rates of decoded tokens, once the cache has its memory:",
        ("model", "budget", "experts that fit", "forecast", "after a probe", "measured", "inside"),
    )
    found = []
    for run in runs:
        both = [_forecasted(run, said) for said in (run.planned, run.probed)]
        table.rows.append(
            (
                run.subject.name,
                run.budget,
                f"{run.planned['share']:.0%}",
                _range(run.planned["hit_rate"]["rate"], "{:.0%}") + f" ({run.planned['hit_rate']['grade']})",
                _range(run.probed["hit_rate"]["rate"], "{:.0%}"),
                f"{both[0].measured:.0%}",
                " and ".join("yes" if one.inside else "no" for one in both),
            )
        )
        found += both
    return found


def speeds(report: Report, runs: Sequence[Tried]) -> None:
    """Decoding and the first token, beside their ranges."""
    table = report.table(
        "Speed: ranges that were forecast, and what was measured. The first token comes from an empty cache, and "
        "from one that is in use:",
        (
            "model",
            "budget",
            "tokens/s",
            "after a probe",
            "likeliest",
            "measured",
            "limit",
            "first token, s",
            "measured",
        ),
    )
    inside, off = [], []
    for run in runs:
        said, probed, came = run.planned["speed"], run.probed["speed"], run.measured
        speed = run.tokens_per_second
        first = said["first_token_s"]
        likeliest = probed["tokens_per_second"]["expected"]
        times = (came["cold_prompt_s"], came["prompt_s"])
        inside += [_in(said["tokens_per_second"], speed), *(_in(first, time) for time in times)]
        off.append(abs(likeliest - speed) / speed)
        table.rows.append(
            (
                run.subject.name,
                run.budget,
                _range(said["tokens_per_second"], "{:.1f}"),
                _range(probed["tokens_per_second"], "{:.1f}"),
                f"{likeliest:.1f}",
                f"{speed:.1f}",
                said["limit"],
                _range(first, "{:.2f}"),
                " and ".join(f"{time:.2f}" for time in times),
            )
        )
    _require_inside(report, "speed lies in its range", inside)
    report.require(
        "after a probe, the likeliest speed is within 20 % of the measured one",
        f"{sum(one <= MOST_OFF for one in off)} of {len(off)}, at most {max(off):.0%} off",
        max(off) <= MOST_OFF,
    )


def full_size(report: Report, found: Sequence[Kept]) -> None:
    """The kept results of the full-size model beside their forecasts."""
    table = report.table(
        "Speed of the full-size model: what bench_peers.py measured, and the forecasts for that machine, with the "
        "experts that fitted; tokens per second:",
        ("case", "experts that fit", "hit rate by", "tokens/s", "likeliest", "measured", "inside"),
    )

    def key(one: Kept) -> tuple[str, str]:
        return one.case, one.expected.hit_rate.grade

    for (case, grade), each in itertools.groupby(sorted(found, key=key), key=key):
        runs = list(each)
        speed = runs[0].expected.speed
        assert speed is not None  # the machine is known
        came = [one.tokens_per_second for one in runs]
        said = speed.tokens_per_second
        table.rows.append(
            (
                case,
                f"{runs[0].expected.share:.0%}",
                "all fit" if runs[0].expected.share >= 1 else grade,
                f"{said.low:.1f} to {said.high:.1f}",
                f"{said.expected:.1f}",
                f"{min(came):.1f} to {max(came):.1f}",
                f"{sum(one.inside for one in runs)} of {len(runs)}",
            )
        )
    _require_inside(report, "speed of the full-size model lies in its range", [one.inside for one in found])


def require_hits(report: Report, found: Sequence[Forecasted]) -> None:
    """For each grade, that what came lay in the range, weighing every model and recording alike."""
    for grade in ("law", "known model", "profile", "probe"):
        of_grade = [one for one in found if one.forecast.grade == grade]
        if of_grade:
            _require_inside(report, f"hit rate lies in its range, by {grade}", [one.inside for one in of_grade])
    after = [one for one in found if one.forecast.grade == "probe"]
    near = sum(one.off <= MOST_OFF for one in after)
    report.require(
        "after a probe, the likeliest hit rate is within 20 % of the measured one",
        f"{near} of {len(after)}, at most {max(one.off for one in after):.0%} off",
        near == len(after),
    )


def _require_inside(report: Report, what: str, inside: Sequence[bool]) -> None:
    share = sum(inside) / len(inside)
    report.require(f"{what} in 9 of 10 cases", f"{sum(inside)} of {len(inside)}", share >= LEAST_INSIDE)


def _forecasted(run: Tried, said: dict[str, Any]) -> Forecasted:
    from coterie.planner import HitRate, Range

    value = said["hit_rate"]
    forecast = HitRate(grade=value["grade"], basis=value["basis"], rate=Range(**value["rate"]))
    return Forecasted(about=run.subject.name, share=said["share"], forecast=forecast, measured=run.measured["hit_rate"])


def _in(said: dict[str, float], value: float) -> bool:
    return said["low"] <= value <= said["high"]


def _range(said: dict[str, float], form: str) -> str:
    return f"{form.format(said['low'])} to {form.format(said['high'])}"


def _both(planned: float, measured: float) -> str:
    return f"{planned / MIB:.0f} / {measured / MIB:.0f}"
