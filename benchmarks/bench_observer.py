"""What observing costs, at the routing shape of Qwen3-30B-A3B: 48 layers, 128 experts, 8 per token, hidden size 2048.

An observer is called 97 times a token: once for the step, and for each of 48 layers once with the router's choice and
once with how its experts were served. Each event is a small frozen dataclass over two small arrays, about 10 µs, so a
token costs about a millisecond whatever the experts' size. This model's experts are thinned to 1/48 of the real
width, so that all of them fit in memory: a step here does less arithmetic and reads less memory than the real model's
(3.6 GB of experts a token, 0.1 s at 35 GB/s), and the share that observing takes here is an upper bound on the real
one.

Steps of one sequence alternate between no observer and each kind, in an order drawn anew each round, so that contexts
of all kinds are equally long and a busy moment hits all.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import Counter
from typing import Any

from harness.machine import wait_until_quiet
from harness.models import generated_store
from harness.options import options
from harness.paired import Timings
from harness.report import Report
from synthetic import Dimensions

SHAPE = Dimensions(layers=48, expert_hidden=16)
QUICK = Dimensions(layers=8, expert_hidden=16)
MOST = 0.03


class EventCounter:
    """The least observer: counts events by kind."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def on_event(self, event: object) -> None:
        """Counts it."""
        self.seen[type(event).__name__] += 1


class Stepper:
    """Decodes one sequence token by token.

    Args:
        model: The open model.
        prompt: Tokens to begin with.
    """

    def __init__(self, model: Any, prompt: int) -> None:
        import torch

        self.model = model
        ids = torch.randint(16, 8000, (1, prompt), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        self._cache = out.past_key_values
        self._draw = torch.Generator().manual_seed(1)

    def step(self, observer: Any) -> float:
        """Seconds of one decode step with an observer, or None for none."""
        import torch

        # Drawn, not greedy: random models fall into loops of few experts.
        ids = torch.randint(16, 8000, (1, 1), generator=self._draw)
        if observer is not None:
            self.model.coterie.add_observer(observer)
        began = time.perf_counter()
        with torch.no_grad():
            self.model(input_ids=ids, past_key_values=self._cache, use_cache=True)
        took = time.perf_counter() - began
        if observer is not None:
            self.model.coterie.remove_observer(observer)
        return took


def observers(model: Any) -> dict[str, Any]:
    """Kinds of observers by name; none first."""
    from coterie.engine import TokenRecorder, TraceRecorder

    source = model.coterie.source
    return {
        "none": None,
        "counts events": EventCounter(),
        "trace recorder": TraceRecorder(
            model=source.name, identity=source.identity, num_experts=dict(source.num_experts)
        ),
        "token recorder": TokenRecorder(),
    }


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    from coterie.engine import load

    wait_until_quiet(given.wait_quiet)
    dimensions = QUICK if given.quick else SHAPE
    report = Report("observer", "The cost of observing", work=given.work_dir.parent, quick=given.quick)
    store = generated_store(given.work_dir, dimensions)
    model = load(store, expert_memory="100%", threads=given.threads)
    stepper = Stepper(model, prompt=32)
    kinds = observers(model)
    rounds = 20 if given.quick else 60
    for _ in range(3 * dimensions.experts // dimensions.top_k):
        stepper.step(None)  # until nearly all experts are resident
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(list(kinds), len(kinds)):
            taken[name].append(stepper.step(kinds[name]))
    timings = Timings(taken)
    table = report.table(
        f"{dimensions.layers} layers × {dimensions.experts} experts, top {dimensions.top_k}, hidden "
        f"{dimensions.hidden}, experts' width {dimensions.expert_hidden}, {given.threads} threads, {rounds} rounds:",
        ("observer", "ms/token, median", "quartiles", "µs more, median", "share"),
    )
    base = timings.median("none")
    for name in kinds:
        low, high = timings.spread(name)
        more = statistics.median(a - b for a, b in zip(taken[name], taken["none"], strict=True))
        table.rows.append(
            (
                name,
                f"{1e3 * timings.median(name):.2f}",
                f"{1e3 * low:.2f} … {1e3 * high:.2f}",
                f"{1e6 * more:.0f}",
                f"{100 * more / base:.1f} %",
            )
        )
        if name != "none":
            report.require(f"{name}: under {100 * MOST:.0f} %", f"{100 * more / base:.1f} %", more / base < MOST)
    report.values.update({"rounds": taken, "events": dict(kinds["counts events"].seen)})
    model.coterie.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
