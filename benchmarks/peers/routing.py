"""Whether the generated model routes as it was designed to: what caches would have made of a recorded run."""

from __future__ import annotations

from pathlib import Path

from harness.report import Report

RESIDENCIES = (0.125, 0.25, 0.5)
_REAL = Path(__file__).resolve().parent.parent / "data" / "traces" / "qwen3-30b-a3b.npz"


def routing_table(report: Report, trace: Path) -> None:
    """Hit rates of LRU by layer, of the default policy, and of the optimum, beside those of a real model's trace."""
    from coterie.eviction import read_trace, replay
    from coterie.spec import DEFAULT_POLICY

    table = report.table(
        "Hit rates on recorded routing, from an empty cache, with room for a share of the experts:",
        ("trace", "tokens", "policy", *(f"{100 * share:g} %" for share in RESIDENCIES)),
    )
    for path in (trace, _REAL):
        if not path.exists():
            continue
        recorded = read_trace(path)
        capacities = [round(share * recorded.experts) for share in RESIDENCIES]
        report_of = replay(recorded, capacities, policies=["lru", DEFAULT_POLICY])
        rates = {(row.scope, row.policy, row.capacity): row.hit_rate for row in report_of.rows}
        rows = (
            ("layer", "lru"),
            ("layer", "belady"),
            ("global", "lru"),
            ("global", DEFAULT_POLICY),
            ("global", "belady"),
        )
        for scope, policy in dict.fromkeys(rows):
            found = [rates[scope, policy, capacity] for capacity in capacities]
            where = "each layer" if scope == "layer" else "all layers"
            table.rows.append(
                (recorded.model, str(recorded.tokens), f"{policy}, {where}", *(f"{rate:.3f}" for rate in found))
            )
            report.values[f"hit rates, {recorded.model}, {policy}, {where}"] = found
