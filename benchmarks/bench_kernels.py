"""Quantised experts on the processor: the native library against torch's own operators.

One token times a matrix reads every weight once and computes two operations with it, so memory is the limit: what
counts is bytes per second, and how many bytes a weight takes. Every contestant goes through matrices that together are
several times larger than the third-level cache, as one token through the layers of a model does. *native* uses the
store's bytes in place; *sum of codes* only adds up the codes of int4 as 64-bit numbers, about as fast as
memory can be read; *int4pack* (``_weight_int4pack_mm_for_cpu``) has the same codes and scales in a packed order
that depends on the machine; *bf16 linear* is what an unquantised model does.

Schemes with other groups, and those that quantised checkpoints bring along, stand beside them: as they take about as
many bytes as *int4*, they have to be as fast, but for *int4-g32*, which takes a ninth more and so a ninth longer.

The second table is a layer of eight experts (gate, up, SiLU, down, weighted sum), for a few tokens that all choose the
same eight: *native* in one call, *int4pack* as a loop in Python.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from harness.machine import wait_until_quiet
from harness.options import options
from harness.paired import Timings, interleave
from harness.report import Report

WIDTH, INNER, EXPERTS, LAYERS, GROUP = 2048, 768, 8, 40, 64
SHAPES = ((2 * INNER, WIDTH), (WIDTH, INNER))
LEAST_RATIO = 1.0
OTHER_GROUPS = ("int4-g128", "int4-g32", "int4-g32-sym", "int4-g32-sym-f16", "int4-g32-zp-f16", "int4-g128-zp-f16")
LEAST_GROUPS_RATIO = 0.95
"""Of a scheme with other groups to int4, per byte more that it takes."""

Multiply = Callable[[torch.Tensor], torch.Tensor]
Experts = Sequence[tuple[Any, Any]]


def fields_of(scheme: str, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random codes and scales as the store has them."""
    from coterie.native import PART_DTYPES
    from coterie.spec.encodings import SCHEME_FORMATS

    form = SCHEME_FORMATS[scheme]
    (dtype, codes), (of_scales, scales) = form.parts(rows, columns)
    random = torch.randint(0, 255, codes, dtype=torch.uint8).view(PART_DTYPES[dtype])
    if of_scales == "U8":  # scales as bytes, with zero points behind them
        groups, real = form.group_count(columns), PART_DTYPES[form.scale_dtype]
        numbers = (torch.rand(rows, groups) * 0.01).to(real).view(torch.uint8)
        points = torch.randint(0, 255, (rows, scales[1] - numbers.shape[1]), dtype=torch.uint8)
        return random, torch.cat([numbers, points], dim=1)
    return random, (torch.rand(scales) * (0.001 if form.code_bits == 8 else 0.01)).to(PART_DTYPES[of_scales])


def int4pack(codes: torch.Tensor, scales: torch.Tensor) -> Multiply:
    """Torch's operator with its own packing of the codes."""
    stored = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1).int()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(stored, 1)
    pairs = scales.transpose(0, 1).contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, GROUP, pairs)


def matrices(library: Any, rows: int, columns: int, count: int) -> dict[str, tuple[list[Multiply], float]]:
    """For each contestant its matrices, and bytes per weight."""
    from coterie.native import SCHEMES, PackedMatrix
    from coterie.spec.encodings import SCHEME_FORMATS

    four = [fields_of("int4", rows, columns) for _ in range(count)]
    sixteen = [torch.randn(rows, columns, dtype=torch.bfloat16) for _ in range(-(-count // 4))]
    found: dict[str, tuple[list[Multiply], float]] = {
        "native int4": ([PackedMatrix(library, "int4", *fields) for fields in four], 0.5 + 4 / GROUP),
        "sum of codes": ([lambda _, c=codes: c.view(torch.int64).sum() for codes, _ in four], 0.5),
        "int4pack": ([int4pack(*fields) for fields in four], 0.5 + 4 / GROUP),
    }
    for scheme in (*SCHEMES, *OTHER_GROUPS):
        if scheme != "int4":
            nbytes = SCHEME_FORMATS[scheme].bits / 8
            many = [fields_of(scheme, rows, columns) for _ in range(-(-count // max(1, round(2 * nbytes))))]
            found[f"native {scheme}"] = ([PackedMatrix(library, scheme, *fields) for fields in many], nbytes)
    return found | {"bf16 linear": ([lambda x, w=w: torch.nn.functional.linear(x, w) for w in sixteen], 2.0)}


def through(products: list[Multiply], x: torch.Tensor) -> float:
    """Seconds per matrix."""
    began = time.perf_counter()
    for product in products:
        product(x)
    return (time.perf_counter() - began) / len(products)


def measure_matrices(library: Any, shape: tuple[int, int], count: int, rounds: int) -> tuple[Timings, dict[str, float]]:
    """One token times each matrix of each contestant."""
    found = matrices(library, *shape, count)
    x = torch.randn(1, shape[1]).bfloat16()
    contestants = {name: lambda p=products: through(p, x) for name, (products, _) in found.items()}
    return interleave(contestants, rounds), {name: size for name, (_, size) in found.items()}


def loop_of_int4pack(layer: Experts, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The experts of a layer, all of them for all tokens, with torch's operators."""
    out = torch.zeros_like(x)
    for place, (gate_up, down) in enumerate(layer):
        gate, up = gate_up(x).chunk(2, dim=-1)
        out += down(torch.nn.functional.silu(gate) * up) * weights[:, place : place + 1]
    return out


def measure_layers(library: Any, layers: int, tokens: int, rounds: int) -> Timings:
    """Seconds per layer for both contestants."""
    from coterie.native import ExpertsKernel

    fields = [[tuple(fields_of("int4", *shape) for shape in SHAPES) for _ in range(EXPERTS)] for _ in range(layers)]
    kernel = ExpertsKernel(library, schemes=["int4"], activation="silu", num_experts=EXPERTS, width=WIDTH, inner=INNER)
    located = [
        [kernel.locate(place, *(("int4", one) for one in expert)) for place, expert in enumerate(layer)]
        for layer in fields
    ]
    packed = [[tuple(int4pack(*one) for one in expert) for expert in layer] for layer in fields]
    x = torch.randn(tokens, WIDTH).bfloat16()
    index, weights = torch.arange(EXPERTS).expand(tokens, -1).contiguous(), torch.rand(tokens, EXPERTS).bfloat16()

    def native() -> float:
        began = time.perf_counter()
        for layer in located:
            kernel.begin(x, index, weights).finish(layer)
        return (time.perf_counter() - began) / layers

    def loop() -> float:
        began = time.perf_counter()
        for layer in packed:
            loop_of_int4pack(layer, x, weights)
        return (time.perf_counter() - began) / layers

    return interleave({"native": native, "int4pack": loop}, rounds)


def spread(timings: Timings, name: str, factor: float) -> str:
    """Median and quartiles in other units."""
    low, high = timings.spread(name)
    return f"{timings.median(name) * factor:.3g} ({low * factor:.3g} … {high * factor:.3g})"


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    given = parser.parse_args()
    from coterie.native import library, why_not

    loaded = library()
    if loaded is None:
        raise SystemExit(f"There is no native library to measure: {why_not()}")
    wait_until_quiet(given.wait_quiet)
    report = Report(
        "kernels", "Quantised experts, against torch's operators", work=given.work_dir.parent, quick=given.quick
    )
    layers, rounds = (2, 3) if given.quick else (LAYERS, 9)
    threads = f"{loaded.threads} threads, level {loaded.level_name}"

    products = report.table(
        f"One token times a matrix, {layers * EXPERTS} matrices in turn, {threads}; {rounds} interleaved rounds:",
        ("matrix", "contestant", "ns per 1000 weights (quartiles)", "GB/s", "time / native int4"),
    )
    for shape in SHAPES:
        timings, sizes = measure_matrices(loaded, shape, layers * EXPERTS, rounds)
        weights = shape[0] * shape[1]
        for name, size in sizes.items():
            speed = weights * size / 1e9 / timings.median(name)
            ratio = timings.ratio(name, "native int4")
            cells = (str(list(shape)), name, spread(timings, name, 1e12 / weights), f"{speed:.1f}", f"{ratio:.2f}")
            products.rows.append(cells)
        report.values[str(list(shape))] = timings.rounds
        for scheme in OTHER_GROUPS:
            ratio = timings.ratio("native int4", f"native {scheme}")
            least = LEAST_GROUPS_RATIO * min(1.0, sizes["native int4"] / sizes[f"native {scheme}"])
            report.require(f"one token times {list(shape)}: speed of {scheme} to int4", f"{ratio:.2f}", ratio >= least)
        ratio = timings.ratio("int4pack", "native int4")
        report.require(f"one token times {list(shape)}: not slower than int4pack", f"{ratio:.2f}", ratio >= LEAST_RATIO)

    whole = report.table(
        f"A layer of {EXPERTS} experts [{2 * INNER}, {WIDTH}], {layers} layers in turn, {threads}:",
        ("tokens", "native, ms (quartiles)", "int4pack in a loop, ms (quartiles)", "int4pack / native"),
    )
    for tokens in given.tokens:
        timings = measure_layers(loaded, layers, tokens, rounds)
        ratio = timings.ratio("int4pack", "native")
        cells = (spread(timings, "native", 1e3), spread(timings, "int4pack", 1e3))
        whole.rows.append((str(tokens), *cells, f"{ratio:.2f}"))
        report.values[f"layer, {tokens} tokens"] = timings.rounds
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
