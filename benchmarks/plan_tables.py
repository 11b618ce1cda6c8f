"""What `coterie plan` says of released models in five memories, for docs/planning.md.

Each model is laid out as files without content, of the released shape (model_sizes.py, omni_memory.py). It is planned
for a store: experts in int4 (those that are released in MXFP4 stay so), other linear layers in int4, or by part where a
model speaks. Speed is a forecast for a machine that was measured once, and kept in results/plan_machine.json.

    python benchmarks/plan_tables.py              prints the tables and writes them for publish.py
    python benchmarks/plan_tables.py --measure    measures this machine first, which should do nothing else
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from coterie.planner import BudgetPlan, DiskSpeed, Machine, Plan, ProductSpeed, Range, measure_machine, plan
from coterie.spec import format_bytes
from fullsize.omni.configuration import released_config
from fullsize.omni.hollow import write_hollow_checkpoint
from harness.machine import describe_machine
from harness.report import RESULTS, Table
from model_sizes import MODELS, lay_out

BUDGETS = (6, 8, 12, 16, 24)
"""GiB."""
MEASURED = RESULTS / "plan_machine.json"
RECORD = 2654208
"""Bytes of an expert of Qwen3-30B-A3B in int4: about what most of these models read at once."""
OMNI = "Qwen/Qwen3-Omni-30B-A3B-Instruct"
_LEFT_OUT = ("allenai/OLMoE-1B-7B-0924", "Qwen/Qwen3-Omni-30B-A3B-Thinking")


def measure() -> None:
    """Keeps what this machine gives."""
    found = measure_machine(Path(), record=RECORD, precisions=("int4", "int8", "mxfp4"), tell=print)
    content = {"machine": asdict(found), "where": describe_machine(Path())}
    MEASURED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> Machine:
    """What was kept."""
    kept = json.loads(MEASURED.read_text(encoding="utf-8"))["machine"]
    return Machine(
        threads=kept["threads"],
        disk=DiskSpeed(**kept["disk"]),
        bus=kept["bus"],
        products={name: ProductSpeed(**speed) for name, speed in kept["products"].items()},
        quantising=kept["quantising"],
    )


def plans(on: Machine) -> list[tuple[str, Plan]]:
    """Name and plan of each model."""
    found = []
    memory = [f"{budget}GiB" for budget in BUDGETS]
    with tempfile.TemporaryDirectory() as folder:
        omni = write_hollow_checkpoint(Path(folder) / "omni", released_config())
        found.append((OMNI, plan(omni, memory=memory, scheme="int4", machine=on)))
        for model in (model for model in MODELS if model.name not in _LEFT_OUT):
            place = Path(folder) / model.name.replace("/", "--")
            place.mkdir()
            lay_out(model, place)
            scheme = "native" if model.mxfp4 else "int4"
            found.append((model.name, plan(place, memory=memory, scheme=scheme, dense_scheme="int4", machine=on)))
    return found


def table(name: str, found: Plan) -> Table:
    """A model's rows."""
    grades = {one.hit_rate.grade for one in found.budgets if one.hit_rate is not None}
    rows = Table(
        f"**{name}**: a store of {format_bytes(found.disk.store_nbytes)}; a token uses "
        f"{format_bytes(int(found.working_set_nbytes))} of experts; all experts stay in "
        f"{format_bytes(found.all_experts)}. Hit rate by {', '.join(sorted(grades)) or 'nothing: it does not run'}.",
        ("memory", "experts that fit", "hit rate", "tokens per second", "first token", "largest context", "limit"),
    )
    rows.rows = [_row(one) for one in found.budgets]
    return rows


def _row(one: BudgetPlan) -> tuple[str, ...]:
    memory = f"{one.memory.memory >> 30} GiB"
    if one.speed is None or one.hit_rate is None:
        shorter = f" With a context of {one.largest_context:,} tokens it runs." if one.largest_context else ""
        least = f"will not run: {format_bytes(one.memory.minimum)} are needed.{shorter}"
        return (memory, least, "–", "–", "–", "–", "memory")
    rate = one.hit_rate.rate
    return (
        memory,
        f"{one.share:.0%}",
        f"{rate.low:.0%} to {rate.high:.0%}",
        _between(one.speed.tokens_per_second),
        f"{_between(one.speed.first_token_s)} s",
        f"{one.largest_context:,}",
        one.speed.limit,
    )


def _between(value: Range) -> str:
    digits = 0 if value.low >= 10 else 1
    return f"{value.low:.{digits}f} to {value.high:.{digits}f}"


def main() -> int:
    """Prints the tables and writes them for publish.py."""
    if "--measure" in sys.argv[1:]:
        measure()
    on = machine()
    assert on.disk is not None  # it is always measured above
    head = (
        f"For a machine with {on.threads} threads, a disk that reads {on.disk.random / 1e9:.1f} GB/s and memory that "
        f"is read at {on.bus / 1e9:.1f} GB/s; a context of 4,096 tokens, a prompt of 256:"
    )
    text = "\n\n".join([head, *(table(name, found).markdown() for name, found in plans(on))])
    print(text)
    (RESULTS / "plan_tables.md").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
