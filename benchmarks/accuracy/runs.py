"""What `coterie plan` says of a model in several budgets, and what a process in each of them does."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cgroup import run_in_cgroup

_HERE = Path(__file__).resolve().parent.parent
PROBE_TOKENS = 128
PROMPT_TOKENS = 64
TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with a text, and the budgets that it is tried in.

    Attributes:
        name: For people.
        model: As a command takes it.
        text: Its first tokens are the probe; the others are read.
        budgets: As ``--memory`` takes them.
        context: Tokens to provide for.
    """

    name: str
    model: str
    text: Path
    budgets: tuple[str, ...]
    context: int


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A budget: what was said, without and with a probe, and what came.

    Attributes:
        subject: The model.
        budget: As ``--memory`` took it.
        planned: The budget's part of `coterie plan --json`.
        probed: The same with a probe.
        experts: Bytes of all experts.
        measured: What harness/text_run.py printed; of several rounds the medians.
        peak: Bytes that the process held at the most, of all rounds, the first of which goes to the peak.
    """

    subject: Subject
    budget: str
    planned: dict[str, Any]
    probed: dict[str, Any]
    experts: int
    measured: dict[str, Any]
    peak: int

    @property
    def tokens_per_second(self) -> float:
        """As measured."""
        return 1 / float(self.measured["step_s"])


def plan(subject: Subject, *options: str) -> dict[str, Any]:
    """What the command prints as JSON, in a process of its own, which measures the machine."""
    budgets = [word for budget in subject.budgets for word in ("--memory", budget)]
    command = [sys.executable, "-m", "coterie", "plan", subject.model, *budgets, "--context", str(subject.context)]
    command += ["--prompt-tokens", str(PROMPT_TOKENS), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tried(subject: Subject, *, rounds: int, tokens: int) -> list[Tried]:
    """Plans a model and tries each budget, round by round.

    Raises:
        CgroupUnavailable: If no memory cgroup can be made here.
    """
    planned = plan(subject)
    probed = plan(subject, "--probe", str(subject.text))
    runs: dict[str, list[dict[str, Any]]] = {budget: [] for budget in subject.budgets}
    for number in range(rounds):
        for budget, one in zip(subject.budgets, planned["budgets"], strict=True):
            runs[budget].append(_run(subject, budget, int(one["memory"]["memory"]), tokens, number == 0))
            print(f"{subject.name}, {budget}, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return [
        Tried(
            subject=subject,
            budget=budget,
            planned=said,
            probed=after_probe,
            experts=planned["expert_nbytes"],
            measured=_medians(runs[budget]),
            peak=max(run["peak"] for run in runs[budget]),
        )
        for budget, said, after_probe in zip(subject.budgets, planned["budgets"], probed["budgets"], strict=True)
    ]


def _run(subject: Subject, budget: str, limit: int, tokens: int, to_the_peak: bool) -> dict[str, Any]:
    """A process in a memory cgroup of the budget's size."""
    words = [subject.model, subject.text, "--memory", budget, "--max-context", subject.context, "--tokens", tokens]
    words += ["--skip", PROBE_TOKENS, "--prompt-tokens", PROMPT_TOKENS]
    command = [sys.executable, "-m", "harness.text_run", *map(str, words), *(["--to-the-peak"] if to_the_peak else [])]
    run = run_in_cgroup(command, limit, env={"PYTHONPATH": str(_HERE)}, timeout_s=TIMEOUT_S)
    if run.returncode:
        how = "was killed for memory" if run.killed else f"ended with {run.returncode}"
        raise SystemExit(f"{subject.name} in {budget} {how}:\n{run.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found | {"peak": max(run.resident, run.high_water), "step_s": statistics.fmean(found["steps_s"])}


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure; lists are left out."""
    return {
        name: statistics.median(run[name] for run in runs)
        for name, value in runs[0].items()
        if not isinstance(value, list)
    }
