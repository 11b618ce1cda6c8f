"""Decode steps of one sequence, with one observer or another or none: what being told costs.

Kinds alternate in an order drawn anew each round, so that contexts of all kinds are equally long and a busy moment hits
all.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from typing import Any

from harness.paired import Timings
from harness.report import Report, Table

NONE = "none"
"""The kind without an observer."""

COLUMNS = ("ms/token, median", "quartiles", "µs more, median", "share")


class WatchedSteps:
    """Decodes one sequence token by token.

    Args:
        model: The open model.
        prompt: Tokens to begin with.
    """

    def __init__(self, model: Any, prompt: int) -> None:
        import torch

        from harness.kept_cache import kept_cache

        self.model = model
        self._vocabulary = model.config.get_text_config().vocab_size
        self._draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            out = model(input_ids=self._ids(prompt), use_cache=True, logits_to_keep=1)
        self._kept = kept_cache(out)

    def _ids(self, count: int) -> Any:
        import torch

        # Drawn, not greedy: random models fall into loops of few experts. Below what special tokens take.
        return torch.randint(16, self._vocabulary * 9 // 10, (1, count), generator=self._draw)

    def step(self, observer: Any) -> float:
        """Seconds of one decode step with an observer, or None for none."""
        import torch

        ids = self._ids(1)
        if observer is not None:
            self.model.coterie.add_observer(observer)
        began = time.perf_counter()
        with torch.no_grad():
            self.model(input_ids=ids, **self._kept, use_cache=True)
        took = time.perf_counter() - began
        if observer is not None:
            self.model.coterie.remove_observer(observer)
        return took

    def compare(self, kinds: Mapping[str, Any], rounds: int, unmeasured: int) -> Timings:
        """Seconds of steps with each kind of observer.

        Args:
            kinds: Name → observer; the one called ``NONE`` is None.
            rounds: Steps of each.
            unmeasured: Steps before, until what they ask for is resident.
        """
        for _ in range(unmeasured):
            self.step(None)
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        shuffle = random.Random(0)
        for _ in range(rounds):
            for name in shuffle.sample(list(kinds), len(kinds)):
                taken[name].append(self.step(kinds[name]))
        return Timings(taken)


def add_rows(table: Table, timings: Timings) -> dict[str, float]:
    """A row for each kind, under its name and ``COLUMNS``; returns kind → what it takes more, as a share of none."""
    base = timings.median(NONE)
    shares = {}
    for name, taken in timings.rounds.items():
        low, high = timings.spread(name)
        more = statistics.median(a - b for a, b in zip(taken, timings.rounds[NONE], strict=True))
        shares[name] = more / base
        table.rows.append(
            (
                name,
                f"{1e3 * timings.median(name):.2f}",
                f"{1e3 * low:.2f} … {1e3 * high:.2f}",
                f"{1e6 * more:.0f}",
                f"{100 * more / base:.1f} %",
            )
        )
    return shares


def require_cheap(report: Report, shares: Mapping[str, float], most: float) -> None:
    """No kind of observer may take a larger share than that."""
    for name, share in shares.items():
        if name != NONE:
            report.require(f"{name}: under {100 * most:.0f} %", f"{100 * share:.1f} %", share < most)
