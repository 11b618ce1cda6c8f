"""What caches hit of models whose routing was recorded, for `coterie plan`. Nothing is measured on this machine.

Each recording is cut into windows of so many tokens. Each window is replayed from an empty cache, of every size, by the
policies that the planner knows. The lowest, the mean and the highest miss rate of all windows go into the table that
the package ships. Beside them stands how far the bundled model is from itself in each scheme, which bench_schemes.py
measured.

    python benchmarks/known_models.py            writes src/coterie/planner/known_models.json
    python benchmarks/known_models.py --check    ends with 1 if the file differs
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coterie.eviction import Group, RecordedTrace, read_trace, simulate
from coterie.eviction.belady import compulsory
from coterie.planner.known_models import TABLE
from coterie.spec import ExpertKey
from harness.report import RESULTS

DATA = Path(__file__).resolve().parent / "data" / "traces"
POLICIES = ("markov", "lru")
SHARES = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
WINDOW = 256
"""Tokens, about those of a question with its answer."""
MOST_WINDOWS = 8
"""Of a recording."""
DIGITS = 4

SCHEMES = {
    "native": ("native", "native"),
    "int8": ("int8", "native"),
    "int4": ("int4", "native"),
    "int4, linear layers int8": ("int4", "int8"),
    "int4, linear layers int4": ("int4", "int4"),
}
"""Rows of bench_schemes.py's table of the bundled model → schemes of experts and of linear layers."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A model and its recordings."""

    name: str
    model_type: str
    files: tuple[str, ...]


MODELS = (
    Recorded(
        name="DeepSeek-V2-Lite",
        model_type="deepseek_v2",
        files=("deepseek-v2-lite-intent.npz", "deepseek-v2-lite-law.npz"),
    ),
    Recorded(name="OLMoE-1B-7B", model_type="olmoe", files=("olmoe-1b-7b.npz",)),
    Recorded(name="Qwen3-30B-A3B", model_type="qwen3_moe", files=("qwen3-30b-a3b.npz",)),
)


def windows(trace: RecordedTrace, tokens: int = WINDOW, most: int = MOST_WINDOWS) -> list[list[Group[ExpertKey]]]:
    """Windows of a recording, spread evenly over it; the whole of one that is not longer."""
    first, last = trace.groups[0].step, trace.groups[-1].step
    starts = range(first, max(first, last + 1 - tokens) + 1, tokens)
    chosen = [starts[number] for number in np.linspace(0, len(starts) - 1, min(most, len(starts))).round().astype(int)]
    return [[group for group in trace.groups if start <= group.step < start + tokens] for start in chosen]


def miss_rate(groups: list[Group[ExpertKey]], experts: int, share: float, policy: str) -> float:
    """Of a window, from an empty cache in which a share of the experts fits, all layers together."""
    return 1 - simulate(groups, max(1, int(share * experts)), policy).hit_rate


def entry(model: Recorded, folder: Path = DATA) -> dict[str, Any]:
    """What the table says of a model."""
    traces = [read_trace(folder / file) for file in model.files]
    first = traces[0]
    cut = [(window, trace.experts) for trace in traces for window in windows(trace)]
    rates: dict[str, list[dict[str, float]]] = {}
    for policy in POLICIES:
        rates[policy] = []
        for share in SHARES:
            found = [miss_rate(window, experts, share, policy) for window, experts in cut]
            rates[policy].append(
                {
                    "share": share,
                    "low": round(min(found), DIGITS),
                    "mean": round(sum(found) / len(found), DIGITS),
                    "high": round(max(found), DIGITS),
                }
            )
    return {
        "name": model.name,
        "model_type": model.model_type,
        "layers": first.layers,
        "experts": first.experts // first.layers,
        "top_k": max(len(group.keys) for group in first.groups),
        "recordings": list(model.files),
        "windows": len(cut),
        "first_uses": round(
            sum(1 - compulsory(window, experts).hit_rate for window, experts in cut) / len(cut), DIGITS
        ),
        "miss_rates": rates,
    }


def divergences() -> list[dict[str, Any]]:
    """What bench_schemes.py measured of the bundled model."""
    tables = json.loads((RESULTS / "schemes.json").read_text(encoding="utf-8"))["tables"]
    rows = next(table for table in tables if table["caption"].startswith("The bundled model over"))["rows"]
    found = {row[0]: float(row[-1].partition(" ")[0]) for row in rows}
    return [{"scheme": scheme, "dense_scheme": dense, "nats": found[name]} for name, (scheme, dense) in SCHEMES.items()]


def table() -> str:
    """The whole file."""
    content = {
        "comment": "Written by benchmarks/known_models.py. Do not edit.",
        "bundled_divergence": divergences(),
        "models": [entry(model) for model in MODELS],
    }
    return json.dumps(content, indent=1) + "\n"


def main() -> int:
    """Writes or checks the table."""
    text = table()
    if "--check" in sys.argv[1:]:
        return int(not TABLE.exists() or TABLE.read_text(encoding="utf-8") != text)
    TABLE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
