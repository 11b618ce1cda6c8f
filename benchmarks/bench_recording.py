"""What recording a profile costs while a model generates, with and without what experts contribute.

A recorder is told 97 times a token at 48 layers: of the step, and of each layer's choice and of how its experts were
served; with contributions, 48 times more, of the norms of what each expert added. A norm of 2,048 numbers reads 8 KiB
that were just written: some microseconds a layer. What remains is Python: events, and rows copied into buffers that are
counted every few hundred tokens, one bank at a time, so that no step pays for all. The database is written by another
thread, which takes its share of a core now and then: that is in the figures, because it runs meanwhile.

Steps of one sequence alternate between no recorder and each kind, in an order drawn anew each round, so that contexts
of all kinds are equally long and a busy moment hits all. ``--model`` measures any store or checkpoint; without it the
model in the package serves, whose steps are so short that the share is an upper bound for any larger one.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.machine import wait_until_quiet
from harness.options import options
from harness.paired import Timings
from harness.report import Report

MOST = 0.05
CAPACITY = "100%"


class Stepper:
    """Decodes one sequence token by token.

    Args:
        model: The open model.
        prompt: Tokens to begin with.
    """

    def __init__(self, model: Any, prompt: int) -> None:
        import torch

        self.model = model
        self._vocabulary = model.config.get_text_config().vocab_size
        self._draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            out = model(input_ids=self._ids(prompt), use_cache=True)
        self._cache = out.past_key_values

    def _ids(self, count: int) -> Any:
        import torch

        # Drawn, not greedy: random models fall into loops of few experts. Below what special tokens take.
        return torch.randint(16, self._vocabulary * 9 // 10, (1, count), generator=self._draw)

    def step(self, recorder: Any) -> float:
        """Seconds of one decode step with a recorder, or None for none."""
        import torch

        ids = self._ids(1)
        if recorder is not None:
            self.model.coterie.add_observer(recorder)
        began = time.perf_counter()
        with torch.no_grad():
            self.model(input_ids=ids, past_key_values=self._cache, use_cache=True)
        took = time.perf_counter() - began
        if recorder is not None:
            self.model.coterie.remove_observer(recorder)
        return took


def recorders(model: Any, folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Kinds of recorders by name, each with a profile of its own; none first."""
    found: dict[str, Any] = {"none": None}
    for name, contributions in (("routing", False), ("with contributions", True)):
        context = model.coterie.record_profile(folder / f"{name}.db", contributions=contributions)
        found[name] = stack.enter_context(context)
        # Each step adds the one that it measures.
        model.coterie.remove_observer(found[name])
    return found


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="bundled", help="a store, a checkpoint, or bundled (%(default)s)")
    parser.add_argument("--expert-memory", default=CAPACITY, help="size of the experts' arena (%(default)s)")
    parser.add_argument("--rounds", type=int, default=None, help="default: 300, or 20 with --quick")
    given = parser.parse_args()
    from coterie.engine import load
    from coterie.engine.source import text_component

    wait_until_quiet(given.wait_quiet)
    report = Report("recording", "The cost of recording a profile", work=given.work_dir.parent, quick=given.quick)
    model = load(
        given.model,
        component=text_component(given.model),
        expert_memory=given.expert_memory,
        threads=given.threads,
    )
    rounds = given.rounds or (20 if given.quick else 300)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stepper = Stepper(model, prompt=32)
        kinds = recorders(model, Path(folder), stack)
        for _ in range(max(10, rounds // 5)):
            stepper.step(None)  # until what it asks for is resident
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        shuffle = random.Random(0)
        for _ in range(rounds):
            for name in shuffle.sample(list(kinds), len(kinds)):
                taken[name].append(stepper.step(kinds[name]))
    timings = Timings(taken)
    banks = model.coterie.expert_banks
    shape = banks[0]
    table = report.table(
        f"{model.coterie.source.name}: {len(banks)} layers × {shape.num_experts} experts, top {shape.choices}, "
        f"{given.expert_memory} of the experts in memory, {given.threads} threads, {rounds} rounds:",
        ("recorder", "ms/token, median", "quartiles", "µs more, median", "share"),
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
        # The package's model is a thousandth of those that the bound is for.
        if name != "none" and given.model != "bundled":
            report.require(f"{name}: under {100 * MOST:.0f} %", f"{100 * more / base:.1f} %", more / base < MOST)
    report.values["rounds"] = taken
    model.coterie.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
