"""Whether a server's budget holds with eight clients at once, who show pictures and ask at the length of the context.

``coterie serve --memory B`` runs in a memory cgroup of B. Eight clients each have a conversation of two turns, with a
picture in each, whose prompts come to up to 4,096 tokens. Nobody may be killed, what is sampled must be within B, and
every answer, with its log probabilities, must be the one that it gets from a server that has all experts in memory and
nobody else to answer. The model has the bundled model's towers and larger experts.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

from harness.clients import Client, at_once, one_by_one, served
from harness.options import options
from harness.report import Report
from omni import OmniDimensions, write_omni

MIB = 1 << 20
CONTEXT = 4096
SMALL = OmniDimensions(layers=4, experts=128, top_k=4, expert_hidden=768, kv_heads=8)
LARGE = OmniDimensions(layers=24, experts=128, expert_hidden=1536, heads=32)
"""3.6 GB of experts in int8, 7.2 GB as a checkpoint in bfloat16."""


def made(work: Path, dimensions: OmniDimensions) -> Path:
    """The store in int8; made if it is not there."""
    import coterie

    name = f"omni-{dimensions.layers}x{dimensions.experts}-{dimensions.expert_hidden}"
    store, checkpoint = work / f"{name}-store", work / f"{name}-checkpoint"
    if not store.exists():
        write_omni(checkpoint, dimensions)
        coterie.extract(checkpoint, work / f".{name}.partial", scheme="int8", dense_scheme="int8")
        (work / f".{name}.partial").rename(store)
        shutil.rmtree(checkpoint)
    return store


def measure(report: Report, store: Path, memory: int, words: int) -> None:
    """Serves the clients at once, in a cgroup, and then one by one."""
    clients = [Client(number, max(1, words * part // 16)) for number, part in enumerate((15, 3, 7, 16, 1, 11, 4, 9))]
    shared = [store, "--max-context", CONTEXT]
    run, answers = served([*shared, "--memory", memory, "--parallel", 8], memory, partial(at_once, clients))
    alone = [*shared, "--expert-memory", "100%", "--parallel", 1, "--prefix-memory", 0]
    _, expected = served(alone, None, partial(one_by_one, clients))
    peak = max(run.resident, run.high_water)
    table = report.table(
        f"Eight clients with pictures, prompts of up to {CONTEXT} tokens, in a cgroup of the budget:",
        ("budget MiB", "anonymous MiB", "mapped MiB", "sum, sampled MiB", "high-water MiB", "killed", "seconds"),
    )
    sizes = (memory, run.anonymous, run.mapped, run.resident, run.high_water)
    table.rows.append((*(f"{one / MIB:.0f}" for one in sizes), str(run.oom_kills), f"{run.seconds:.0f}"))
    report.require("nobody is killed", f"{run.oom_kills} kills", not run.killed and run.returncode == 0)
    report.require("what is held is within the budget", f"{peak / MIB:.0f} of {memory / MIB:.0f} MiB", peak <= memory)
    same = sum(ours == theirs for ours, theirs in zip(answers, expected, strict=True))
    report.require("answers are those that each gets alone", f"{same} of {len(clients)}", same == len(clients))
    report.values["clients"] = {"budget": memory, "peak": peak, "seconds": run.seconds}


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--memory", type=int, metavar="MIB", help="budget (3072; 1040 with --quick)")
    given = parser.parse_args()
    report = Report("clients", "Eight clients in one budget", work=given.work_dir.parent, quick=given.quick)
    memory = given.memory or (1040 if given.quick else 3072)
    given.work_dir.mkdir(parents=True, exist_ok=True)
    measure(report, made(given.work_dir, SMALL if given.quick else LARGE), memory * MIB, 400 if given.quick else 3400)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
