"""What observing costs, at the routing shape of Qwen3-30B-A3B: 48 layers, 128 experts, 8 per token, hidden size 2048.

An observer is called 97 times a token: once for the step, and for each of 48 layers once with the router's choice and
once with how its experts were served. Each event is a small frozen dataclass over two small arrays, about 10 µs, so a
token costs about a millisecond whatever the experts' size. This model's experts are thinned to 1/48 of the real
width, so that all of them fit in memory: a step here does less arithmetic and reads less memory than the real model's
(3.6 GB of experts a token, 0.1 s at 35 GB/s), and the share that observing takes here is an upper bound on the real
one.

Steps of one sequence alternate between no observer and each kind, in an order drawn anew each round, so that contexts
of all kinds are equally long and a busy moment hits all.

The server's dashboard is an observer that is always there, and a page that asks once per second, if it is open. Here it
asks once in each step, and a second of it is reckoned as that of a page: what steps take without it, and one question.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from harness.machine import wait_until_quiet
from harness.models import generated_store
from harness.options import options
from harness.report import Report
from harness.watched_steps import COLUMNS, NONE, WatchedSteps, add_rows, require_cheap
from synthetic import Dimensions

SHAPE = Dimensions(layers=48, expert_hidden=16)
QUICK = Dimensions(layers=8, expert_hidden=16)
MOST = 0.03

DASHBOARD, ASKED = "dashboard", "dashboard, asked in each step"


class EventCounter:
    """The least observer: counts events by kind."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def on_event(self, event: object) -> None:
        """Counts it."""
        self.seen[type(event).__name__] += 1


class OpenPage:
    """The dashboard's observer, and a page that asks what there is to show once in each step.

    Args:
        runtime: Of the model.
    """

    def __init__(self, runtime: Any) -> None:
        from coterie.server.demand import Demand

        self._demand = Demand(runtime.source.num_experts)
        governor = SimpleNamespace(total=0, held=0, lent=0)
        opened = SimpleNamespace(runtime=runtime)
        engine = SimpleNamespace(opened=opened, governor=governor, running=1, waiting=0, trouble=None)
        self._service: Any = SimpleNamespace(engine=engine, demand=self._demand, created=0.0)
        self._pool = ThreadPoolExecutor(1)
        self._asking: Future[int] | None = None
        self.asked = 0

    def on_event(self, event: Any) -> None:
        """As the server's, and asks at the beginning of a step."""
        self._demand.on_event(event)
        if type(event).__name__ == "StepStarted" and (self._asking is None or self._asking.done()):
            self._asking = self._pool.submit(self._ask)

    def _ask(self) -> int:
        from coterie.server.routes.dashboard import state

        self.asked += 1
        return len(json.dumps(state(self._service)))

    def close(self) -> None:
        """Ends its thread; raises what a question has raised."""
        self._pool.shutdown()
        if self._asking is not None:
            self._asking.result()


def observers(model: Any) -> dict[str, Any]:
    """Kinds of observers by name; none first."""
    from coterie.engine import TokenRecorder, TraceRecorder
    from coterie.server.demand import Demand

    source = model.coterie.source
    return {
        NONE: None,
        "counts events": EventCounter(),
        "trace recorder": TraceRecorder(
            model=source.name, identity=source.identity, num_experts=dict(source.num_experts)
        ),
        "token recorder": TokenRecorder(),
        DASHBOARD: Demand(source.num_experts),
        ASKED: OpenPage(model.coterie),
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
    steps = WatchedSteps(model, prompt=32)
    kinds = observers(model)
    rounds = 20 if given.quick else 60
    # Until nearly all experts are resident.
    timings = steps.compare(kinds, rounds, unmeasured=3 * dimensions.experts // dimensions.top_k)
    table = report.table(
        f"{dimensions.layers} layers × {dimensions.experts} experts, top {dimensions.top_k}, hidden "
        f"{dimensions.hidden}, experts' width {dimensions.expert_hidden}, {given.threads} threads, {rounds} rounds:",
        ("observer", *COLUMNS),
    )
    shares = add_rows(table, timings)
    base = timings.median(NONE)
    # Of a page, there is one question per second.
    open_page = shares[DASHBOARD] + max(0.0, shares.pop(ASKED) - shares[DASHBOARD]) * base
    require_cheap(report, shares | {"dashboard, open in a browser": open_page}, MOST)
    kinds[ASKED].close()
    report.values.update({"rounds": timings.rounds, "events": dict(kinds["counts events"].seen)})
    model.coterie.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
