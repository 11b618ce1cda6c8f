"""What `coterie plan` says of released models in five memories, for docs/planning.md.

Each model is laid out as files without content, of the released shape (model_sizes.py, omni_memory.py). It is planned
for a store: experts in int4 (those that are released in MXFP4 stay so), other linear layers in int4, or by part where a
model speaks. Speed is a forecast for the machine on which bench_kernels.py and bench_peers.py measured; products with
MXFP4 were not measured there.

    python benchmarks/plan_tables.py              prints the tables and writes them for publish.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from coterie.planner import BudgetPlan, DiskSpeed, Machine, Plan, ProductSpeed, Range, plan
from coterie.planner.machine import PROMPT_ROWS
from coterie.spec import format_bytes
from coterie.spec.encodings import SCHEME_FORMATS
from fullsize.omni.configuration import released_config
from fullsize.omni.hollow import write_hollow_checkpoint
from harness.report import RESULTS, Table
from model_sizes import MODELS, lay_out

BUDGETS = (6, 8, 12, 16, 24)
"""GiB."""
_EXPERTS, _MATRIX = 8, (1536, 2048)
"""What bench_kernels.py multiplies for several tokens."""
OMNI = "Qwen/Qwen3-Omni-30B-A3B-Instruct"
_LEFT_OUT = ("allenai/OLMoE-1B-7B-0924", "Qwen/Qwen3-Omni-30B-A3B-Thinking")


def machine() -> Machine:
    """The machine on which bench_kernels.py and bench_peers.py measured, from their results.

    Products with 16 rows were measured in int4; those in int8 and bfloat16 are taken to need the same time per weight.
    """
    kernels = json.loads((RESULTS / "kernels.json").read_text(encoding="utf-8"))["tables"]
    speeds = {row[1]: float(row[3]) * 1e9 for row in reversed(kernels[0]["rows"])}
    rows = next(row for row in kernels[1]["rows"] if row[0] == str(PROMPT_ROWS))
    seconds = float(str(rows[1]).partition(" ")[0]) / 1e3
    int4 = SCHEME_FORMATS["int4"]
    prompt = PROMPT_ROWS * _EXPERTS * int4.nbytes(*_MATRIX) / seconds
    products = {
        name: ProductSpeed(token=speeds[kernel], prompt=prompt * bits / int4.bits)
        for name, kernel, bits in (
            ("int4", "native int4", int4.bits),
            ("int8", "native int8", SCHEME_FORMATS["int8"].bits),
            ("bf16", "bf16 linear", 16.0),
        )
    }
    disk = float(_cell("peers.json", "reads, GB/s").partition(" ")[0]) * 1e9
    extracted = float(_cell("extraction.json", "of it, the extract call", column=3)) * 1e9
    return Machine(
        threads=2,
        disk=DiskSpeed(path="as measured", random=disk, sequential=disk),
        bus=speeds["sum of codes"],
        products=products,
        quantising=extracted,
    )


def _cell(file: str, row: str, *, column: int = 1) -> str:
    """A figure of a benchmark's tables."""
    tables = json.loads((RESULTS / file).read_text(encoding="utf-8"))["tables"]
    return next(str(cells[column]) for table in tables for cells in table["rows"] if cells[0] == row)


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
    if one.hit_rate is None:
        shorter = f"; it runs with a context of {one.largest_context:,} tokens" if one.largest_context else ""
        least = f"will not run: {format_bytes(one.memory.minimum)} are needed{shorter}"
        return (memory, least, "–", "–", "–", "–", "memory")
    rate, speed = one.hit_rate.rate, one.speed
    return (
        memory,
        f"{one.share:.0%}",
        f"{rate.low:.0%} to {rate.high:.0%}",
        "not measured" if speed is None else _between(speed.tokens_per_second),
        "not measured" if speed is None else f"{_between(speed.first_token_s)} s",
        f"{one.largest_context:,}",
        "not measured" if speed is None else speed.limit,
    )


def _between(value: Range) -> str:
    digits = 0 if value.low >= 10 else 1
    return f"{value.low:.{digits}f} to {value.high:.{digits}f}"


def main() -> int:
    """Prints the tables and writes them for publish.py."""
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
