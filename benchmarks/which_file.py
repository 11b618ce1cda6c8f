"""Which store to make or to download for which machine, for docs/which-file.md. Nothing is measured here.

The same models, laid out as files without content, as in plan_tables.py, and the same machine. Each is planned in every
precision whose loss was measured, and in some memories. What is lost is what the bundled model loses in that precision,
of which bench_schemes.py measured the KL divergence (known_models.py has put it where the planner reads it).

Of the precisions that a forecast says reach 5 tokens per second, the table names the one that loses least; where none
does, the fastest.

    python benchmarks/which_file.py              prints the tables and writes them for publish.py
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import CoterieError
from coterie.planner import BudgetPlan, Machine, Plan, plan
from coterie.planner.known_models import known_divergence
from coterie.spec import format_bytes
from harness.report import RESULTS, Table
from model_sizes import MODELS, lay_out
from plan_tables import machine

MEMORY = (8, 16, 24, 32, 64)
"""GiB."""
PRECISIONS = (("native", "native"), ("int8", "native"), ("int4", "native"), ("int4", "int8"), ("int4", "int4"))
"""Of experts, and of linear layers outside them; the one that loses least first."""
ENOUGH = 5.0
"""Tokens per second: about as fast as people read aloud."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A store in a precision, planned for every memory."""

    name: str
    loss: float | None
    plan: Plan


def precision(scheme: str, dense_scheme: str) -> str:
    """A precision as the options of `coterie extract`; bits of the checkpoint are those that it has."""
    if scheme == dense_scheme == "native":
        return "native"
    return scheme if dense_scheme == "native" else f"{scheme}, dense {dense_scheme}"


def files_of(place: Path, on: Machine, *, mxfp4: bool) -> list[File]:
    """The stores that can be made of a checkpoint."""
    memory = [f"{budget}GiB" for budget in MEMORY]
    found = []
    for scheme, dense_scheme in PRECISIONS:
        if mxfp4 and scheme != "native":
            continue  # experts that are in four bits already
        try:
            one = plan(place, memory=memory, scheme=scheme, dense_scheme=dense_scheme, machine=on)
        except CoterieError as error:
            print(f"{place.name}, {scheme}, {dense_scheme}: {error.message}", file=sys.stderr)
            continue
        loss = known_divergence(scheme, dense_scheme)
        found.append(File(name=precision(scheme, dense_scheme), loss=loss, plan=one))
    return found


def expected_speed(one: BudgetPlan) -> float | None:
    """Tokens per second; None if it does not run, or no speed is known."""
    return None if one.hit_rate is None or one.speed is None else one.speed.tokens_per_second.expected


def chosen(files: list[File], index: int) -> str:
    """The file for a memory, with what it does there."""
    speeds = [(file, expected_speed(file.plan.budgets[index])) for file in files]
    running = [(file, speed) for file, speed in speeds if speed is not None]
    if not running:
        runs = [file for file in files if file.plan.budgets[index].hit_rate is not None]
        return f"{runs[0].name}: speed not measured" if runs else "none runs"
    fast = [(file, speed) for file, speed in running if speed >= ENOUGH]
    file, speed = fast[0] if fast else max(running, key=lambda one: one[1])
    return f"{file.name}: {speed:.0f} tok/s" if speed >= 10 else f"{file.name}: {speed:.1f} tok/s"


def main() -> int:
    """Prints the tables and writes them for publish.py."""
    on = machine()
    assert on.disk is not None  # it is always measured there
    losses = Table(
        "What each precision loses, measured on the bundled model:", ("precision", "mean KLD, nats per token")
    )
    for schemes in PRECISIONS:
        known = known_divergence(*schemes)
        losses.rows.append((precision(*schemes), "not measured" if known is None else f"{known:.5f}"))
    machines = Table(
        f"Which file for which memory, and the speed that is forecast with {on.threads} threads, a disk that reads "
        f"{on.disk.random / 1e9:.1f} GB/s and memory that is read at {on.bus / 1e9:.1f} GB/s:",
        ("model", *(f"{budget} GiB" for budget in MEMORY)),
    )
    names = [precision(*schemes) for schemes in PRECISIONS]
    sizes = Table("Bytes of each file on your disk, and of its download:", ("model", *names))
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            place = Path(folder) / model.name.replace("/", "--")
            place.mkdir()
            lay_out(model, place)
            files = files_of(place, on, mxfp4=model.mxfp4)
            machines.rows.append((model.name, *(chosen(files, index) for index in range(len(MEMORY)))))
            nbytes = {file.name: format_bytes(file.plan.disk.store_nbytes) for file in files}
            sizes.rows.append((model.name, *(nbytes.get(name, "–") for name in names)))
    text = "\n\n".join(table.markdown() for table in (machines, losses, sizes))
    print(text)
    (RESULTS / "which_file.md").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
