"""Quantised experts with many tokens each, as in a prefill; and how fast weights become int4 and bfloat16 again.

With many tokens arithmetic is the limit, not memory. A layer of experts (gate, up, SiLU, down), each with its own
rows: *native* is one call of the library, from the store's bytes; *dequantise* makes each matrix bfloat16 with the
library and multiplies with torch's ``linear``; *int4pack* loops over ``_weight_int4pack_mm_for_cpu``; *bf16* is
``linear`` with weights that never were quantised, the same arithmetic without decoding. Layers are gone through in
turn, together larger than the third-level cache.

    python benchmarks/bench_prefill_kernels.py [--rows 8 32 512]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear, silu

from bench_kernels import GROUP, INNER, SHAPES, WIDTH, fields_of, int4pack, spread
from harness.machine import wait_until_quiet
from harness.options import options
from harness.paired import interleave
from harness.report import Report

EXPERTS, LAYERS = 16, 8
LEAST_RATIO = 1.0
Product = Callable[[torch.Tensor], torch.Tensor]


def loop(layer: list[tuple[Product, Product]], x: torch.Tensor, rows: int) -> torch.Tensor:
    """The experts one after the other, each with its own rows."""
    out = torch.empty_like(x)
    for place, (gate_up, down) in enumerate(layer):
        part = slice(place * rows, (place + 1) * rows)
        gate, up = gate_up(x[part]).chunk(2, dim=-1)
        out[part] = down(silu(gate) * up)
    return out


def dequantised(library: Any, codes: torch.Tensor, scales: torch.Tensor, buffer: torch.Tensor) -> Product:
    """``linear`` after dequantising into a buffer."""
    from coterie.native import dequantise

    def product(x: torch.Tensor) -> torch.Tensor:
        dequantise(library, "int4", codes, scales, buffer)
        return linear(x, buffer)

    return product


def layers_of(library: Any, count: int) -> dict[str, list[Any]]:
    """The same number of layers for each contestant; *native* has what its kernel located, and the kernel first."""
    from coterie.native import ExpertsKernel

    fields = [[tuple(fields_of("int4", *shape) for shape in SHAPES) for _ in range(EXPERTS)] for _ in range(count)]
    buffers = [torch.empty(shape, dtype=torch.bfloat16) for shape in SHAPES]
    kernel = ExpertsKernel(library, schemes=["int4"], activation="silu", num_experts=EXPERTS, width=WIDTH, inner=INNER)
    plain = [[torch.randn(shape, dtype=torch.bfloat16) for shape in SHAPES] for _ in range(EXPERTS * 2)]
    return {
        "native": [
            (kernel, [kernel.locate(place, *(("int4", two) for two in one)) for place, one in enumerate(layer)], layer)
            for layer in fields
        ],
        "dequantise": [
            [tuple(dequantised(library, *one, b) for one, b in zip(two, buffers, strict=True)) for two in layer]
            for layer in fields
        ],
        "int4pack": [[tuple(int4pack(*one) for one in two) for two in layer] for layer in fields],
        "bf16": [
            [tuple((lambda x, w=w: linear(x, w)) for w in two) for two in plain[turn % 2 :: 2]] for turn in range(count)
        ],
    }


def seconds_per_expert(layers: list[Any], run: Callable[[Any], object]) -> float:
    """Goes through all layers once."""
    began = time.perf_counter()
    for layer in layers:
        run(layer)
    return (time.perf_counter() - began) / (len(layers) * EXPERTS)


def measure_experts(layers: dict[str, list[Any]], rows: int, rounds: int) -> Any:
    """Seconds per expert of each contestant."""
    x = torch.randn(rows * EXPERTS, WIDTH).bfloat16()
    index, weights = torch.arange(EXPERTS).repeat_interleave(rows)[:, None], torch.ones(rows * EXPERTS, 1)

    def native(layer: Any) -> torch.Tensor:
        kernel, located, _ = layer
        return kernel.begin(x, index, weights).finish(located)

    runs = {name: (lambda layer: loop(layer, x, rows)) for name in layers} | {"native": native}
    contestants = {name: lambda name=name: seconds_per_expert(layers[name], runs[name]) for name in layers}
    return interleave(contestants, rounds)


def measure_conversion(report: Report, library: Any, rounds: int) -> None:
    """Adds the table of quantising and dequantising."""
    from coterie.quant import SCHEMES
    from coterie.spec.encodings import USUAL_SCHEMES

    table = report.table(
        "Conversion of [1536, 2048] from bfloat16 and back, ns per weight (quartiles):",
        ("scheme", "quantise", "by torch", "dequantise", "by torch"),
    )
    weights = torch.randn(SHAPES[0]).bfloat16()
    for name, scheme in ((one, SCHEMES[one]) for one in USUAL_SCHEMES):
        parts = scheme.quantise(weights)

        def timed(run: Callable[[], object]) -> Callable[[], float]:
            def once() -> float:
                began = time.perf_counter()
                run()
                return time.perf_counter() - began

            return once

        timings = interleave(
            {
                "quantise": timed(lambda s=scheme: s.quantise(weights)),
                "quantise by torch": timed(lambda s=scheme: s._quantise(weights)),
                "dequantise": timed(lambda s=scheme, p=parts: s.dequantise(p, WIDTH, torch.bfloat16)),
                "dequantise by torch": timed(lambda s=scheme, p=parts: s._dequantise(p, WIDTH, torch.bfloat16)),
            },
            rounds,
        )
        columns = ("quantise", "quantise by torch", "dequantise", "dequantise by torch")
        table.rows.append((name, *(spread(timings, column, 1e9 / weights.numel()) for column in columns)))
        report.values[f"conversion, {name}"] = timings.rounds


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 16, 32, 64, 128, 512])
    given = parser.parse_args()
    from coterie.native import library, why_not

    loaded = library()
    if loaded is None:
        raise SystemExit(f"There is no native library to measure: {why_not()}")
    wait_until_quiet(given.wait_quiet)
    report = Report(
        "prefill_kernels", "Quantised experts with many tokens", work=given.work_dir.parent, quick=given.quick
    )
    rounds = 3 if given.quick else 9
    measure_conversion(report, loaded, rounds)
    names = ("native", "dequantise", "int4pack", "bf16")
    table = report.table(
        f"An expert [{2 * INNER}, {WIDTH}] and [{WIDTH}, {INNER}] in int4 (groups of {GROUP}), "
        f"{loaded.threads} threads, level {loaded.level_name}: milliseconds (quartiles)",
        ("rows", *names, "dequantise / native", "bf16 / native"),
    )
    layers = layers_of(loaded, 2 if given.quick else LAYERS)
    for rows in given.rows:
        timings = measure_experts(layers, rows, rounds)
        ratio = timings.ratio("dequantise", "native")
        cells = (spread(timings, name, 1e3) for name in names)
        table.rows.append((str(rows), *cells, f"{ratio:.2f}", f"{timings.ratio('bf16', 'native'):.2f}"))
        report.values[f"{rows} rows"] = timings.rounds
        if rows == 32:
            report.require("32 rows: not slower than dequantising for linear", f"{ratio:.2f}", ratio >= LEAST_RATIO)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
