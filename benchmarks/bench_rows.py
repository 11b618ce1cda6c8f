"""The next tokens of several sequences at once, against one sequence after the other, at full size.

*together* is one step of all rows; *alone* is as many steps of one row. Every row is compared with what it is alone:
its bits must be the same. Rows share the reading of attention's weights, and of experts that several of them use. Each
row has its own attention over the tokens before, and its own arithmetic.

- **A layer**: each step goes through some layers of the shape of Qwen3-30B-A3B in int4 (attention, router and 8 of 128
  experts), every sequence with a cache of its own. Weights are many times larger than the third-level cache.
- **A model**: whole decode steps of a store of that shape, all experts in memory, the batch as transformers passes it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench_kernels import fields_of, spread
from fullsize.files import Files
from harness.batches import Group
from harness.machine import wait_until_quiet
from harness.options import options
from harness.paired import Timings, interleave
from harness.report import Report, Table

WIDTH, INNER, HEADS, KV_HEADS, HEAD, EXPERTS, TOP_K = 2048, 768, 32, 4, 128, 128, 8
LAYERS = 4


def normal(*size: int, scale: float = 1.0) -> torch.Tensor:
    """Random values in bfloat16."""
    return (scale * torch.randn(*size)).bfloat16()


def layer_of(library: Any, states: Any) -> Any:
    """A layer with random weights."""
    from coterie.native import LayerNorm, LayerParts, LayerRouter, NativeLayer, PackedMatrix

    mixed, kept = HEADS * HEAD, KV_HEADS * HEAD
    sizes = ((mixed, WIDTH), (kept, WIDTH), (kept, WIDTH), (WIDTH, mixed))
    matrices = [PackedMatrix(library, "int4", *fields_of("int4", *size)) for size in sizes]
    norms = [LayerNorm(1 + normal(size, scale=0.1), 8, 0, 1e-6) for size in (WIDTH, HEAD, HEAD, WIDTH)]
    router = LayerRouter(normal(EXPERTS, WIDTH, scale=0.05), TOP_K, True)
    return NativeLayer(library, LayerParts(*norms, *matrices, HEAD**-0.5, router), states)


def experts_of(library: Any) -> tuple[Any, list[torch.Tensor]]:
    """A bank whose experts are all in memory, and their records."""
    from coterie.native import SCHEME_CODES, Addresses, ExpertsKernel, TokenExperts

    fields = [[*fields_of("int4", 2 * INNER, WIDTH), *fields_of("int4", WIDTH, INNER)] for _ in range(EXPERTS)]
    starts = [sum(field.nbytes for field in fields[0][:i]) for i in range(4)]
    records = [torch.cat([field.view(-1).view(torch.uint8) for field in one]) for one in fields]
    kernel = ExpertsKernel(library, schemes=["int4"], activation="silu", num_experts=EXPERTS, width=WIDTH, inner=INNER)
    four = SCHEME_CODES["int4"]
    addresses = Addresses(library, EXPERTS)
    for expert, record in enumerate(records):
        addresses.publish(expert, record.data_ptr())
    places = (four, starts[0], starts[1], four, starts[2], starts[3])
    return TokenExperts(kernel, addresses, [places] * EXPERTS), records


class Rows(NamedTuple):
    """Sequences, each with a cache in every layer."""

    hidden: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor
    caches: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, rows: int, length: int) -> Rows:
        """So many, all of them so long."""
        angles = 6 * torch.rand(rows, 1, HEAD)
        caches = [(normal(rows, KV_HEADS, length, HEAD), normal(rows, KV_HEADS, length, HEAD)) for _ in range(LAYERS)]
        return cls(normal(rows, 1, WIDTH), angles.cos().bfloat16(), angles.sin().bfloat16(), caches)

    def alone(self) -> list[Rows]:
        """Each by itself, in the same memory."""
        return [
            Rows(*(part[i : i + 1] for part in self[:3]), [(k[i : i + 1], v[i : i + 1]) for k, v in self.caches])
            for i in range(len(self.hidden))
        ]


class Step(NamedTuple):
    """What a step goes through."""

    layers: Sequence[Any]
    experts: Any

    def __call__(self, rows: Rows) -> torch.Tensor:
        """The hidden states after all layers."""
        from coterie.native import KeyValueRoom

        hidden = rows.hidden
        for layer, (keys, values) in zip(self.layers, rows.caches, strict=True):
            state = layer.take(hidden, rows.cosine, rows.sine)
            layer.compute(state, KeyValueRoom.of(keys, values))
            after = self.experts.compute(state)
            layer.release(state)
            if after is None:
                raise AssertionError("all experts are there")
            # Random weights do not keep a residual in bounds.
            hidden = after.clamp(-8, 8)
        return hidden


def measure_layers(report: Report, counts: Sequence[int], *, length: int, rounds: int) -> None:
    """Adds what a layer takes."""
    from coterie.native import TokenStates, library, why_not

    loaded = library()
    if loaded is None:
        raise SystemExit(f"There is no native library to measure: {why_not()}")
    states = TokenStates()
    experts, records = experts_of(loaded)
    step = Step([layer_of(loaded, states) for _ in range(LAYERS)], experts)

    def timed(sequences: Sequence[Rows]) -> float:
        began = time.perf_counter()
        for rows in sequences:
            step(rows)
        return (time.perf_counter() - began) / LAYERS

    table = rows_table(
        report, f"One layer, {loaded.threads} threads, level {loaded.level_name}, {length} tokens before each", rounds
    )
    for count in counts:
        rows = Rows.of(count, length)
        alone = rows.alone()
        same = torch.equal(step(rows), torch.cat([step(one) for one in alone]))
        timings = interleave({"together": lambda r=rows: timed([r]), "alone": lambda a=alone: timed(a)}, rounds)
        add(report, table, "layer", count, timings, same=same)
    del records


def measure_model(
    report: Report, model_path: str | Path, counts: Sequence[int], *, length: int, rounds: int, steps: int
) -> None:
    """Adds what a decode step of a whole model takes."""
    from coterie.engine import load

    with load(model_path, expert_memory="100%", prefetch="off") as model:
        name = model.coterie.source.name
        table = rows_table(report, f"A decode step of {name}, {length} tokens before each", rounds)
        vocabulary = model.config.get_text_config().vocab_size
        prompts = torch.randint(16, vocabulary, (max(counts), length), generator=torch.Generator().manual_seed(0))
        for count in counts:
            group = Group(model, prompts[:count])
            # Experts that no prompt asked for are read in the first steps.
            group.together(steps), group.alone(steps)
            contestants = {"together": partial(group.together, steps), "alone": partial(group.alone, steps)}
            timings = interleave(contestants, rounds)
            add(report, table, name, count, timings, same=group.same())


def rows_table(report: Report, title: str, rounds: int) -> Table:
    """An empty table."""
    return report.table(
        f"{title}; {rounds} interleaved rounds:",
        ("rows", "together, ms (quartiles)", "alone, ms (quartiles)", "alone / together"),
    )


def add(report: Report, table: Table, what: str, count: int, timings: Timings, *, same: bool) -> None:
    """Adds a row of a table and its requirement."""
    report.require(f"{what}, {count} rows: each has the bits that it has alone", "yes" if same else "no", same)
    cells = (spread(timings, "together", 1e3), spread(timings, "alone", 1e3))
    table.rows.append((str(count), *cells, f"{timings.ratio('alone', 'together'):.2f}"))
    report.values[f"{what}, {count} rows"] = timings.rounds


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--length", type=int, default=1024, help="tokens of each sequence before a layer's step")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="of the full-size model (%(default)s)")
    parser.add_argument("--no-fullsize", action="store_true", help="leave the full-size model out; so does --quick")
    given = parser.parse_args()
    wait_until_quiet(given.wait_quiet)
    report = Report("rows", "Rows of several sequences", work=given.work_dir.parent, quick=given.quick)
    torch.manual_seed(0)
    measure_layers(report, given.rows, length=given.length, rounds=3 if given.quick else 15)
    if given.quick:
        with tempfile.TemporaryDirectory() as folder:
            from coterie.extraction import extract

            extract("bundled", Path(folder) / "bundled", scheme="int4", dense_scheme="int4")
            measure_model(report, Path(folder) / "bundled", given.rows, length=32, rounds=2, steps=2)
    elif not given.no_fullsize:
        files = Files(given.work_dir, given.shape)
        if not files.store.exists():
            files.make("store")
        measure_model(report, files.store, given.rows, length=64, rounds=8, steps=3)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
