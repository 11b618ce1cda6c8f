"""Whether a memory budget holds, and what holding it costs: extraction and generation inside memory cgroups.

A model with 4.8 GB of experts is opened with ``memory=B`` inside a cgroup whose limit is B, given prompts of up to
2048 tokens (prefill needs every expert of every layer, and the largest activations), then decodes. The kernel kills
what does not fit; what fits barely loses speed instead: pages of torch's libraries and of files are squeezed out and
read again. So three runs stand side by side, with the same tokens and therefore the same experts:

- *tight*: ``memory=B``, limit B.
- *roomy*: ``memory=B``, limit B + 1 GiB. The same run with 1 GiB more to live in: *tight* must reach 0.9 of its
  decode speed, or the budget is not a ceiling that can be lived under.
- *larger*: ``memory=B + 1 GiB``, limit B + 1 GiB. Another run: the extra GiB holds experts, which then need not be
  read.

The ceiling of *larger* over *tight* is no matter of pressure. This model's routing is as good as random, so the hit
rate is about the share of the experts that is resident, and a decode step takes about misses × bytes per expert ÷
disk speed, or the time of the arithmetic where that is longer. Its figure is printed beside the hit rates; it says
what memory buys.

Extraction runs in a cgroup of 1 GiB. Memory is sampled every 10 ms as anonymous + mapped pages of the process
(``RssAnon + RssShmem + RssFile``), beside the kernel's high-water mark of the same sum.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cgroup import CgroupRun, CgroupUnavailable, run_in_cgroup
from harness.machine import wait_until_quiet
from harness.models import LARGE, MEDIUM, generated_checkpoint
from harness.options import options
from harness.page_cache import drop
from harness.report import Report

GIB = 1 << 30
MIB = 1 << 20
EXTRACTION_LIMIT = GIB
LEAST_SPEED = 0.9
_COLUMNS = (
    "run",
    "budget MiB",
    "limit MiB",
    "experts MiB",
    "anonymous MiB",
    "mapped MiB",
    "sum, sampled MiB",
    "high-water MiB",
    "reclaims",
    "killed",
    "prefill s",
    "decode ms/token",
    "quickest … slowest",
    "hit rate",
)
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Workload:
    """What is generated: a few tokens after each prompt but the last, ``tokens`` after the last, which is measured."""

    prompts: tuple[int, ...]
    tokens: int
    context: int

    def command(self, store: Path, memory: int) -> list[str]:
        """The process that generates under a budget."""
        flags = ["--memory", memory, "--new-tokens", self.tokens, "--max-context", self.context]
        words = map(str, [*flags, "--prompt-tokens", *self.prompts])
        return [sys.executable, "-m", "harness.generation", str(store), *words]


def checked(run: CgroupRun) -> CgroupRun:
    """The run, if it ended well."""
    if run.returncode:
        how = "was killed for memory" if run.killed else f"ended with {run.returncode}"
        raise SystemExit(f"A measured command {how}:\n{run.stderr[-2000:]}")
    return run


def extraction(report: Report, checkpoint: Path, store: Path) -> None:
    """Extracts inside a cgroup."""
    shutil.rmtree(store, ignore_errors=True)
    drop([checkpoint])
    command = [sys.executable, "-m", "coterie", "extract", str(checkpoint), str(store)]
    run = checked(run_in_cgroup(command, EXTRACTION_LIMIT))
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    table = report.table(
        f"Extraction of {size / 1e9:.2f} GB in a cgroup of {EXTRACTION_LIMIT / MIB:.0f} MiB (page cache counts there):",
        ("anonymous MiB", "mapped MiB", "sum, sampled MiB", "high-water MiB", "seconds", "reclaims", "killed"),
    )
    table.rows.append((*held(run), f"{run.seconds:.1f}", str(run.reclaims), str(run.oom_kills)))
    peak = max(run.resident, run.high_water)
    report.require("extraction holds less than 1 GiB", f"{peak / MIB:.0f} MiB", peak < GIB and not run.oom_kills)
    report.values["extraction"] = {"peak": peak, "seconds": run.seconds}


def held(run: CgroupRun) -> tuple[str, str, str, str]:
    """Memory columns."""
    return (
        f"{run.anonymous / MIB:.0f}",
        f"{run.mapped / MIB:.0f}",
        f"{run.resident / MIB:.0f}",
        f"{run.high_water / MIB:.0f}",
    )


def generation(report: Report, store: Path, budget: int, more: int, work: Workload, rounds: int) -> None:
    """The three runs under one budget, side by side."""
    cases = {"tight": (budget, budget), "roomy": (budget, budget + more), "larger": (budget + more, budget + more)}
    runs: dict[str, list[CgroupRun]] = {name: [] for name in cases}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(rounds):
        for name in names[number % 3 :] + names[: number % 3]:
            memory, limit = cases[name]
            run = checked(run_in_cgroup(work.command(store, memory), limit, env={"PYTHONPATH": str(_HERE)}))
            print(f"round {number + 1}, {name}: {run.seconds:.0f} s", file=sys.stderr, flush=True)
            runs[name].append(run)
            results[name].append(json.loads(run.stdout))
    if len({tuple(result["tokens"]) for each in results.values() for result in each}) != 1:
        raise SystemExit("The runs computed different tokens: budgets must not change the output.")
    first = results["tight"][0]
    table = report.table(
        f"Budget {budget / GIB:g} GiB, {first['total_expert_bytes'] / GIB:.2f} GiB of experts, prompts of "
        f"{', '.join(map(str, work.prompts))} tokens, {work.tokens} decoded, room for {work.context}; "
        f"medians of {rounds} rounds:",
        _COLUMNS,
    )
    for name, (memory, limit) in cases.items():
        steps = [decode_step(result) for result in results[name]]
        worst = max(runs[name], key=lambda run: run.high_water)
        table.rows.append(
            (
                name,
                f"{memory / MIB:.0f}",
                f"{limit / MIB:.0f}",
                f"{results[name][0]['capacity'] / MIB:.0f}",
                *held(worst),
                str(max(run.reclaims for run in runs[name])),
                str(sum(run.oom_kills for run in runs[name])),
                f"{statistics.median(result['prefill_s'] for result in results[name]):.2f}",
                f"{1e3 * statistics.median(steps):.0f}",
                f"{1e3 * min(steps):.0f} … {1e3 * max(steps):.0f}",
                f"{100 * results[name][0]['decode_hit_rate']:.0f} %",
            )
        )
        peak = max(max(run.resident, run.high_water) for run in runs[name])
        report.require(f"{name} run stays within its {memory / GIB:g} GiB", f"{peak / MIB:.0f} MiB", peak <= memory)
    speed = {
        other: statistics.median(
            decode_step(theirs) / decode_step(ours)
            for ours, theirs in zip(results["tight"], results[other], strict=True)
        )
        for other in ("roomy", "larger")
    }
    report.require(
        f"decode speed at a limit of {budget / GIB:g} GiB, of that with {more / GIB:g} GiB more to live in",
        f"{speed['roomy']:.2f} (of that with {more / GIB:g} GiB more for experts: {speed['larger']:.2f})",
        speed["roomy"] >= LEAST_SPEED,
    )
    report.values[f"speed at {budget / GIB:g} GiB"] = speed


def decode_step(result: dict[str, Any]) -> float:
    """Mean seconds per decoded token."""
    return float(result["decode_s"]) / int(result["decode_steps"])


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    # Killed politely, it still removes what it made.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))
    wait_until_quiet(given.wait_quiet)
    report = Report("memory", "Memory budgets", work=given.work_dir.parent, quick=given.quick)
    dimensions = MEDIUM if given.quick else LARGE
    checkpoint = generated_checkpoint(given.work_dir, dimensions)
    store = given.work_dir / "memory-store"
    try:
        extraction(report, checkpoint, store)
        if given.quick:
            generation(
                report, store, 768 * MIB, 256 * MIB, Workload(prompts=(50, 256), tokens=8, context=288), rounds=1
            )
        else:
            generation(
                report, store, 2 * GIB, GIB, Workload(prompts=(100, 2048), tokens=32, context=2112), given.rounds
            )
    except CgroupUnavailable as reason:
        raise SystemExit(f"This benchmark needs a memory cgroup (root, cgroup v1 or v2): {reason}.") from reason
    finally:
        shutil.rmtree(store, ignore_errors=True)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
