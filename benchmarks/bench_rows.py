"""The next tokens of several sequences at once, against one sequence after the other: native layers of full size.

Each step goes through some layers of the shape of Qwen3-30B-A3B in int4 (attention, router and 8 of 128 experts), every
sequence with a cache of its own. Weights are many times larger than the third-level cache. *together* is one call for
all rows; *alone* is as many steps of one row. Every row is compared with what it is alone: the bits must be the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from bench_kernels import int4_fields, spread
from harness.machine import wait_until_quiet
from harness.options import options
from harness.paired import interleave
from harness.report import Report

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
    matrices = [PackedMatrix(library, "int4", *int4_fields(*size)) for size in sizes]
    norms = [LayerNorm(1 + normal(size, scale=0.1), 8, 0, 1e-6) for size in (WIDTH, HEAD, HEAD, WIDTH)]
    router = LayerRouter(normal(EXPERTS, WIDTH, scale=0.05), TOP_K, True)
    return NativeLayer(library, LayerParts(*norms, *matrices, HEAD**-0.5, router), states)


def experts_of(library: Any) -> tuple[Any, list[torch.Tensor]]:
    """A bank whose experts are all in memory, and their records."""
    from coterie.native import Addresses, ExpertsKernel, TokenExperts

    fields = [[*int4_fields(2 * INNER, WIDTH), *int4_fields(WIDTH, INNER)] for _ in range(EXPERTS)]
    starts = [sum(field.nbytes for field in fields[0][:i]) for i in range(4)]
    records = [torch.cat([field.view(-1).view(torch.uint8) for field in one]) for one in fields]
    kernel = ExpertsKernel(library, scheme="int4", activation="silu", num_experts=EXPERTS, width=WIDTH, inner=INNER)
    addresses = Addresses(library, EXPERTS)
    for expert, record in enumerate(records):
        addresses.publish(expert, record.data_ptr())
    return TokenExperts(kernel, addresses, (starts[0], starts[1], starts[2], starts[3])), records


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


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--length", type=int, default=1024, help="tokens of each sequence")
    given = parser.parse_args()
    from coterie.native import TokenStates, library, why_not

    loaded = library()
    if loaded is None:
        raise SystemExit(f"There is no native library to measure: {why_not()}")
    wait_until_quiet(given.wait_quiet)
    report = Report("rows", "Rows of several sequences", work=given.work_dir.parent, quick=given.quick)
    torch.manual_seed(0)
    states, rounds = TokenStates(), 3 if given.quick else 15
    experts, records = experts_of(loaded)
    step = Step([layer_of(loaded, states) for _ in range(LAYERS)], experts)

    def timed(sequences: Sequence[Rows]) -> float:
        began = time.perf_counter()
        for rows in sequences:
            step(rows)
        return (time.perf_counter() - began) / LAYERS

    table = report.table(
        f"One layer, {loaded.threads} threads, level {loaded.level_name}, {given.length} tokens before each; "
        f"{rounds} interleaved rounds:",
        ("rows", "together, ms (quartiles)", "alone, ms (quartiles)", "alone / together"),
    )
    for count in given.rows:
        rows = Rows.of(count, given.length)
        alone = rows.alone()
        same = torch.equal(step(rows), torch.cat([step(one) for one in alone]))
        report.require(f"{count} rows: each has the bits that it has alone", "yes" if same else "no", same)
        timings = interleave({"together": lambda r=rows: timed([r]), "alone": lambda a=alone: timed(a)}, rounds)
        cells = (spread(timings, "together", 1e3), spread(timings, "alone", 1e3))
        table.rows.append((str(count), *cells, f"{timings.ratio('alone', 'together'):.2f}"))
        report.values[f"{count} rows"] = timings.rounds
    del records
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
