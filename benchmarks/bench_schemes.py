"""What the schemes lose: relative errors of ways to choose scales, and quality of the bundled model in each scheme.

First table: the experts of the bundled model and normal random weights, rounded in several ways to about as many bits.
`Q4_0` is round to nearest in groups of 32 with one 16-bit scale, as llama.cpp has it; HQQ is half-quadratic
quantisation (Badri and Shaji 2023) with its published settings; the clip search tries 16 shares of each group's range.
Bits count scales and zeros. Second table: the evaluation text through stores of each scheme, beside the full model, and
through the full model with its experts rounded to Q4_0.

Nothing here depends on the machine's speed or memory.

    python benchmarks/bench_schemes.py [--text dialogue=FILE]
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie import extract, inspect, load
from coterie.checkpoint import Checkpoint
from coterie.engine import resolve_path
from coterie.hf.banks import find_banks
from coterie.hf.tokenizer import load_tokenizer
from coterie.quant import SCHEMES
from coterie.quant.grouping import group_size
from harness.options import options
from harness.report import Report
from perplexity import DOMAINS, WINDOWS, Tally, compare, read_windows, text_files

LEVELS = 15
Round = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to round.

    Attributes:
        name: For people.
        bits: Bits per weight for a row of this length, scales included.
        round: Weights [N, K] → the weights that a reader gets.
    """

    name: str
    bits: Callable[[int], float]
    round: Round


def q4_0(w_NK: Tensor) -> Tensor:
    """llama.cpp's Q4_0: groups of 32, the largest weight is level -8, round to nearest."""
    x = w_NK.reshape(-1, 32)
    largest = x.gather(1, x.abs().argmax(1, keepdim=True))
    step = (largest / -8).half().float()
    codes = torch.where(step == 0, 0, (x / torch.where(step == 0, 1, step) + 8.5).floor().clamp(0, 15) - 8)
    return (codes * step).view_as(w_NK)


def affine(w_NK: Tensor, search: Callable[[Tensor, Tensor, Tensor], Iterable[tuple[Tensor, Tensor]]]) -> Tensor:
    """Four bits with bfloat16 scale and zero: the best that a search over (scale, zero) offers, per group."""
    x = w_NK.reshape(-1, group_size(w_NK.shape[1]))
    best, error = x, torch.full((len(x), 1), torch.inf)
    for scale, zero in search(x, x.amin(1, keepdim=True), x.amax(1, keepdim=True)):
        scale, zero = scale.bfloat16().float(), zero.bfloat16().float()
        got = ((x - zero) / scale).round().clamp(-8, 7) * scale + zero
        squares = (got - x).square().sum(1, keepdim=True)
        best, error = torch.where(squares < error, got, best), torch.minimum(error, squares)
    return best.reshape(w_NK.shape)


def plain_range(x: Tensor, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The group's range in 15 steps."""
    scale = (high - low) / LEVELS
    yield scale, low + 8 * scale


def clipped_ranges(x: Tensor, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Sixteen shares of the range."""
    for share in torch.linspace(1, 0.7, 16).tolist():
        yield from plain_range(x, low * share, high * share)


def half_quadratic(x: Tensor, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """HQQ: the zero moves under a norm with p = 0.7 that forgives outliers; the scale stays."""
    beta, growth, power = 10.0, 1.01, 0.7
    ((scale, zero),) = plain_range(x, low, high)
    for _ in range(20):
        yield scale, zero
        codes = ((x - zero) / scale).round().clamp(-8, 7)
        rest = x - (codes * scale + zero)
        shrunk = rest.sign() * (rest.abs() - rest.abs().clamp_min(1e-8) ** (power - 1) / beta).relu()
        zero = (x - shrunk - codes * scale).mean(1, keepdim=True)
        beta *= growth


def int8_rows(w_NK: Tensor) -> Tensor:
    """Eight bits with one bfloat16 scale for each row."""
    step = (w_NK.abs().amax(1, keepdim=True) / 127).bfloat16().float()
    return (w_NK / step).round().clamp(-127, 127) * step


def scheme(name: str) -> Way:
    """One of ours."""
    one = SCHEMES[name]

    def through(w_NK: Tensor) -> Tensor:
        return one.dequantise(one.quantise(w_NK), w_NK.shape[1], torch.float32)

    return Way(name, lambda columns: one.nbytes(64, columns) * 8 / (64 * columns), through)


def _int4_bits(columns: int) -> float:
    return 4 + 32 / group_size(columns)


WAYS = (
    Way("Q4_0", lambda columns: 4.5, q4_0),
    Way("4 bits, plain range", _int4_bits, lambda w: affine(w, plain_range)),
    Way("4 bits, clip search", _int4_bits, lambda w: affine(w, clipped_ranges)),
    Way("4 bits, HQQ", _int4_bits, lambda w: affine(w, half_quadratic)),
    scheme("int4"),
    Way("8 bits, a scale for each row", lambda columns: 8 + 16 / columns, int8_rows),
    scheme("int8"),
)


def bundled_experts() -> list[Tensor]:
    """Two matrices of every fourth expert of the bundled model, float32."""
    checkpoint = Checkpoint.open("bundled")
    found = []
    for key in list(checkpoint.keys())[::4]:
        layout = checkpoint.layout(key)
        record = bytearray(layout.nbytes)
        checkpoint.read_into(key, memoryview(record))
        for place in layout.fields:
            value = torch.frombuffer(record, dtype=torch.bfloat16, count=place.nbytes // 2, offset=place.offset)
            found.append(value.view(place.shape).float())
    return found


def relative_error(weights: list[Tensor], rounding: Round) -> float:
    """√(Σ error² / Σ weight²)."""
    wrong = sum((rounding(w) - w).square().sum().item() for w in weights)
    return float((wrong / sum(w.square().sum().item() for w in weights)) ** 0.5)


def errors(report: Report) -> dict[str, dict[str, float]]:
    """Adds the first table."""
    generator = torch.Generator().manual_seed(0)
    sets = {"bundled model": bundled_experts(), "normal": [torch.randn(512, 2048, generator=generator)]}
    head = [f"{name}: {what}" for name in sets for what in ("bits", "relative error")]
    table = report.table("Rounding alone:", ("way", *head))
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        cells = []
        for name, weights in sets.items():
            bits = sum(way.bits(w.shape[1]) * w.numel() for w in weights) / sum(w.numel() for w in weights)
            error = relative_error(weights, way.round)
            found.setdefault(way.name, {})[name] = error
            cells += [f"{bits:.2f}", f"{error:.4f}"]
        table.rows.append((way.name, *cells))
    report.values["errors"] = found
    return found


def rounded_stock() -> Any:
    """Stock transformers with the bundled model's experts rounded to Q4_0."""
    from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

    model = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(
        resolve_path("bundled"), dtype=torch.bfloat16, experts_implementation="eager"
    )
    with torch.no_grad():
        for bank in find_banks(model):
            for (name,) in bank.targets.values():
                whole = model.get_parameter(name)
                whole.copy_(torch.stack([q4_0(one.float()) for one in whole]))
    return model


def quality(report: Report, folder: Path, arguments: Any) -> dict[str, Tally]:
    """Adds the second table; returns the totals by model."""
    models, sizes = {}, {}
    for name in ("native", *SCHEMES):
        store = folder / name
        shutil.rmtree(store, ignore_errors=True)
        extract("bundled", store, scheme=name)
        models[name] = load(store, expert_memory="64MiB")
        sizes[name] = inspect(store).expert_nbytes / 2**20
    models["Q4_0"] = rounded_stock()
    sizes["Q4_0"] = sizes["native"] * 4.5 / 16
    full = models["native"]
    tokenizer = load_tokenizer(full.coterie.source.directory)
    count = 4 if arguments.quick else WINDOWS
    texts = {domain: read_windows(tokenizer, path, count) for domain, path in text_files(arguments.text).items()}
    by_domain = {}
    for domain, windows in texts.items():
        print(f"{domain}: {len(windows)} windows", file=sys.stderr, flush=True)
        by_domain[domain] = compare(full, models, windows)
    totals = {name: Tally.total([by_domain[domain][name] for domain in DOMAINS]) for name in models}
    table = report.table(
        f"The bundled model over {totals['native'].tokens:,} predicted tokens, experts alone rounded:",
        ("experts", "MiB of records", "nats/token", "perplexity ÷ full", "same-top", "mean KLD"),
    )
    for name, total in totals.items():
        ratio = f"{total.perplexity / totals['native'].perplexity:.4f}"
        row = (f"{sizes[name]:.1f}", f"{total.loss:.4f}", ratio, f"{total.same_top_share:.2%}", f"{total.kld:.5f}")
        table.rows.append((name, *row))
        report.values[name] = vars(total) | {"loss": total.loss, "kld": total.kld, "mib": sizes[name]}
    return totals


def main() -> int:
    """Measures and reports; exit status 1 if something that must hold does not."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="one more text to measure")
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    report = Report("schemes", "Schemes", work=arguments.work_dir, quick=arguments.quick)
    found = errors(report)
    for name in ("bundled model", "normal"):
        ours = found["int4"][name]
        others = {way: error[name] for way, error in found.items() if way.startswith(("4", "Q"))}
        least = min(others, key=others.__getitem__)
        report.require(
            f"int4 errs less than every other way of 4 bits ({name})",
            f"{ours:.4f}, the best other is {least} with {others[least]:.4f}",
            ours < others[least],
        )
    totals = quality(report, arguments.work_dir / "schemes", arguments)
    report.require(
        "mean KLD of int4 is below that of Q4_0",
        f"{totals['int4'].kld:.5f} against {totals['Q4_0'].kld:.5f}",
        totals["int4"].kld < totals["Q4_0"].kld,
    )
    report.require("native against itself", f"KLD {totals['native'].kld}", totals["native"].kld == 0)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
