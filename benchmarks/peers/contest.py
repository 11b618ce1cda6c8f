"""Runs cases round by round, every engine of a case in turn, and keeps each outcome as soon as it is there."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from fullsize.model import FullSizeModel
from harness.journal import Journal
from peers.case import Case, Outcome
from peers.engines import Engine, measure

Metric = Literal["decode", "prefill", "first token", "whole run"]


@dataclass
class Contest:
    """Cases and who takes part in each.

    Attributes:
        model: What all of them run.
        journal: Of outcomes; what it has is not run again.
        outcomes: By round, case and engine.
    """

    model: FullSizeModel
    journal: Journal
    outcomes: dict[tuple[int, str, str], Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.journal:
            outcome = Outcome(**value)
            self.outcomes[key["round"], outcome.case, outcome.engine] = outcome

    def run(self, case: Case, engines: Sequence[Engine], number: int) -> None:
        """One round of one case; who begins rotates."""
        first = number % len(engines)
        for engine in [*engines[first:], *engines[:first]]:
            key = (number, case.name, engine.name)
            if key in self.outcomes:
                continue
            outcome = measure(engine, case, self.model)
            self.outcomes[key] = outcome
            self.journal.keep({"round": number, "case": case.name, "engine": engine.name}, asdict(outcome))
            print(_line(number, outcome), file=sys.stderr, flush=True)

    def of(self, case: str, engine: str) -> list[Outcome]:
        """The outcomes of an engine in a case, round by round."""
        return [one for (_, name, who), one in sorted(self.outcomes.items()) if (name, who) == (case, engine)]

    def engines(self, case: str) -> list[str]:
        """Who has run a case, in the order of its first round."""
        return list(dict.fromkeys(who for (_, name, who) in self.outcomes if name == case))

    def ratio(self, metric: Metric, case: str, ours: str, theirs: Sequence[str]) -> float | None:
        """Median over rounds of how many times as fast ``ours`` is as the best of ``theirs``; None without a round.

        Where none of ``theirs`` came to an end in a round but ours did, that round's ratio is infinite.
        """
        ratios = []
        for number in sorted({number for (number, name, _) in self.outcomes if name == case}):
            rivals = [self.outcomes[number, case, who] for who in theirs if (number, case, who) in self.outcomes]
            mine = self.outcomes.get((number, case, ours))
            if mine is None or not rivals:
                continue
            best = max((speed(metric, rival) for rival in rivals), default=0.0)
            own = speed(metric, mine)
            ratios.append(own / best if best else float("inf") if own else 0.0)
        return statistics.median(ratios) if ratios else None


def speed(metric: Metric, outcome: Outcome) -> float:
    """More is faster; 0 for a run that has no such figure, or computed something else."""
    if not outcome.expected:
        return 0.0
    if metric == "first token":
        return 1 / outcome.first_token_s if outcome.first_token_s else 0.0
    if metric == "whole run":
        return 0.0 if outcome.failure else 1 / outcome.seconds
    value = outcome.decode_tokens_per_s if metric == "decode" else outcome.prefill_tokens_per_s
    return value or 0.0


def _line(number: int, outcome: Outcome) -> str:
    parts = [f"round {number + 1}, {outcome.case}, {outcome.engine}: {outcome.seconds:.0f} s"]
    for metric, unit in (("first token", "/s"), ("prefill", " tok/s"), ("decode", " tok/s")):
        parts.append(f"{metric} {speed(metric, outcome):.3g}{unit}")
    return ", ".join([*parts, outcome.failure] if outcome.failure else parts)
