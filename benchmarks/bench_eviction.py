"""Eviction policies on recorded routing of real models, beside Belady's optimum; and what a decision costs.

A miss costs a read of megabytes, so the hit rate is most of the speed of a model that does not fit. LRU loses 10 to 20
points to the optimum at small residencies, nearly all of it by its choice of victims, as traces of real models show.
The default policy's constants were tuned on one trace, which the tables mark; the others are what it was not tuned on.
A trace is cut to its first tokens, as many as a session has: what a policy learns counts from the first one on. The
policies see the same requests in the same order, so nothing here depends on the machine but the cost of a decision,
which is CPU time of this thread per request and per victim in a replay of a model with 6,144 experts.

python benchmarks/bench_eviction.py --traces DIRECTORY-OR-FILE...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from coterie.eviction import (
    POLICY_NAMES,
    EvictionPolicy,
    RecordedTrace,
    compare,
    make_policy,
    read_trace,
)
from coterie.eviction.trace import Scope
from coterie.spec import DEFAULT_POLICY, ExpertKey
from harness.options import options
from harness.report import Report

TUNED_ON = "deepseek-v2-lite-law.npz"
SCOPES: tuple[Scope, ...] = ("global", "layer")
RESIDENCIES = (0.125, 0.25, 0.5)
WORTH_WINNING = 0.02
"""Where Belady is less than this above LRU there is nothing to win."""
LAYERS, EXPERTS, TOP_K = 48, 128, 8
DATA = Path(__file__).resolve().parent / "data" / "traces"


def found(places: list[Path]) -> list[Path]:
    """The trace files in directories and among files."""
    files = [file for place in places for file in (sorted(place.glob("*.npz")) if place.is_dir() else [place])]
    if missing := [place for place in places if not place.exists()]:
        raise SystemExit(f"There is no {missing[0]}: give recorded traces (npz) with --traces DIRECTORY-OR-FILE...")
    if not files:
        raise SystemExit(f"There is no .npz in {', '.join(map(str, places))}.")
    return files


def cut(trace: RecordedTrace, tokens: int) -> list[Any]:
    """The groups of the first steps."""
    first = trace.groups[0].step
    return [group for group in trace.groups if group.step < first + tokens]


class Timed:
    """A policy that counts the CPU time of what it is told and asked."""

    def __init__(self, policy: EvictionPolicy[ExpertKey]) -> None:
        self._policy = policy
        self.uses = self.asked = 0
        self.use_ns = self.victim_ns = 0

    def insert(self, key: ExpertKey, nbytes: int, *, cold: bool = False) -> None:
        """As the policy's."""
        began = time.thread_time_ns()
        self._policy.insert(key, nbytes, cold=cold)
        self.use_ns += time.thread_time_ns() - began
        self.uses += 1

    def hit(self, key: ExpertKey) -> None:
        """As the policy's."""
        began = time.thread_time_ns()
        self._policy.hit(key)
        self.use_ns += time.thread_time_ns() - began
        self.uses += 1

    def remove(self, key: ExpertKey) -> None:
        """As the policy's."""
        self._policy.remove(key)

    def victims(self, needed_bytes: int, is_evictable: Any) -> list[ExpertKey]:
        """As the policy's."""
        began = time.thread_time_ns()
        chosen = self._policy.victims(needed_bytes, is_evictable)
        self.victim_ns += time.thread_time_ns() - began
        self.asked += 1
        return chosen


def cost(name: str, tokens: int) -> tuple[float, float, float]:
    """Microseconds per use, per victim, and per token, at a quarter of the experts resident."""
    from coterie.eviction import Group, simulate

    draw = np.random.default_rng(0)
    skew = 1 / np.arange(1, EXPERTS + 1)
    groups = [
        Group(
            step=step,
            layer=layer,
            keys=tuple(
                ExpertKey("text", layer, "mlp", int(expert))
                for expert in (draw.choice(EXPERTS, TOP_K, replace=False, p=skew / skew.sum()) + layer) % EXPERTS
            ),
        )
        for step in range(tokens)
        for layer in range(LAYERS)
    ]
    made: list[Timed] = []

    def make() -> Timed:
        made.append(Timed(make_policy(name)))
        return made[-1]

    simulate(groups, LAYERS * EXPERTS // 4, make)
    timed = made[0]
    # The clock itself is in every figure; it is taken out again.
    began = time.thread_time_ns()
    for _ in range(10_000):
        time.thread_time_ns()
    tick = (time.thread_time_ns() - began) / 10_000
    use = max(0.0, timed.use_ns / timed.uses - tick)
    victim = max(0.0, timed.victim_ns / max(1, timed.asked) - tick)
    return use / 1e3, victim / 1e3, (use * timed.uses + victim * timed.asked) / tokens / 1e3


def measure(report: Report, trace: RecordedTrace, tokens: int) -> None:
    """One trace: a table of hit rates, and the requirement on the default policy."""
    groups = cut(trace, tokens)
    tuned = " (the constants of the default policy were tuned on this one)" if trace.name == TUNED_ON else ""
    steps = len({group.step for group in groups})
    table = report.table(
        f"{trace.name}: {trace.model}, first {steps} of {trace.tokens} tokens{tuned}; hit rates in %:",
        ("capacity", "residency", *POLICY_NAMES, "belady", "compulsory", f"gap closed by {DEFAULT_POLICY}"),
    )
    kept = []
    for scope in SCOPES:
        for residency in RESIDENCIES:
            capacity = int(residency * trace.experts)
            rates = {o.policy: o.hit_rate for o in compare(groups, capacity, scope=scope)}
            gap = rates["belady"] - rates["lru"]
            closed = (rates[DEFAULT_POLICY] - rates["lru"]) / gap if gap >= 0.005 else None
            shown = "-" if closed is None else f"{closed:.0%}"
            label = "shared" if scope == "global" else "per layer"
            table.rows.append((label, f"{residency:.1%}", *(f"{100 * rate:.1f}" for rate in rates.values()), shown))
            kept.append({"scope": scope, "residency": residency, "hit_rates": rates, "gap_closed": closed})
    contested = [
        row["hit_rates"] for row in kept if row["hit_rates"]["belady"] - row["hit_rates"]["lru"] >= WORTH_WINNING
    ]
    won = sum(rates[DEFAULT_POLICY] > rates["lru"] for rates in contested)
    report.require(
        f"{trace.name}: {DEFAULT_POLICY} above lru wherever Belady is 2 points above it",
        f"{won} of {len(contested)}",
        won == len(contested),
    )
    report.values[trace.name] = kept


def main() -> int:
    """Replays and reports."""
    parser = options(__doc__)
    parser.add_argument("--traces", type=Path, nargs="+", default=[DATA], help="npz files, or folders (%(default)s)")
    parser.add_argument("--tokens", type=int, default=512, help="of each trace (%(default)s)")
    given = parser.parse_args()
    files = found(given.traces)
    report = Report("eviction", "Eviction policies on recorded routing", work=Path(), quick=given.quick)
    for file in files:
        measure(report, read_trace(file), 64 if given.quick else given.tokens)
    table = report.table(
        f"CPU time of a decision, {LAYERS * EXPERTS} experts, a quarter resident, {TOP_K} of {EXPERTS} per layer:",
        ("policy", "µs per use", "µs per victim", "ms per token"),
    )
    for name in POLICY_NAMES:
        use, victim, token = cost(name, 20 if given.quick else 200)
        table.rows.append((name, f"{use:.1f}", f"{victim:.1f}", f"{token / 1e3:.2f}"))
        report.values[f"cost {name}"] = {"us_per_use": use, "us_per_victim": victim, "us_per_token": token}
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
