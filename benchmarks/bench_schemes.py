"""What the schemes lose: relative errors of ways to choose scales, and quality of the bundled model in each scheme.

First table: sampled experts of the bundled model, and experts of Qwen3-30B-A3B's size with normal random weights,
rounded in several ways to about as many bits. `Q4_0`, `Q4_1`, `Q5_0` and `Q8_0` round to nearest in groups of 32, as
llama.cpp has them; HQQ is half-quadratic quantisation (Badri and Shaji 2023) with its published settings; the clip
search tries 16 shares of each group's range. Bits count scales and zeros.

Second table: the evaluation text through stores of each scheme, and through the model with its experts rounded as
llama.cpp's formats do, beside the full model; the figures are those of `coterie evaluate`. What counts is the curve of
divergence against bytes: where a format has another size than ours, its divergence at our size is read off the line
between its neighbours, on a logarithmic scale.

Nothing here depends on the machine's speed or memory.

    python benchmarks/bench_schemes.py [--text dialogue=FILE]
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from coterie import extract, inspect, load
from coterie.checkpoint import Checkpoint
from coterie.engine import resolve_path
from coterie.evaluate import Comparison, Quality, TokenScores
from coterie.hf.tokenizer import load_tokenizer
from coterie.quant import SCHEMES
from coterie.quant.grouping import group_size
from harness.options import options
from harness.report import Report
from perplexity import Passage, compare, read_passage, summarise, text_files

LEVELS = 15
Round = Callable[[Tensor], Tensor]

WINDOWS = 8
"""Windows of 255 predictions of each text."""

STORES: dict[str, dict[str, str]] = {
    "native": {},
    "int8": {"scheme": "int8"},
    "int4": {"scheme": "int4"},
    "int4, linear layers int8": {"scheme": "int4", "dense_scheme": "int8"},
    "int4, linear layers int4": {"scheme": "int4", "dense_scheme": "int4"},
}


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


def symmetric(w_NK: Tensor, bits: int) -> Tensor:
    """llama.cpp's Q4_0 and Q5_0: groups of 32, the largest weight is the lowest level, round to nearest."""
    x = w_NK.reshape(-1, 32)
    half = 2 ** (bits - 1)
    largest = x.gather(1, x.abs().argmax(1, keepdim=True))
    step = largest / -half
    inverse = torch.where(step == 0, 0, 1 / torch.where(step == 0, 1, step))
    codes = (x * inverse + half + 0.5).floor().clamp(0, 2 * half - 1) - half
    return (codes * step.half().float()).view_as(w_NK)


def q4_1(w_NK: Tensor) -> Tensor:
    """llama.cpp's Q4_1: groups of 32, the range in 15 steps, round to nearest; scale and minimum in half precision."""
    x = w_NK.reshape(-1, 32)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / LEVELS
    codes = ((x - low) / torch.where(step == 0, 1, step) + 0.5).floor().clamp(0, LEVELS)
    return (codes * step.half().float() + low.half().float()).view_as(w_NK)


def q8_0(w_NK: Tensor) -> Tensor:
    """llama.cpp's Q8_0: groups of 32, the largest weight is 127 or -127, round to nearest."""
    x = w_NK.reshape(-1, 32)
    step = x.abs().amax(1, keepdim=True) / 127
    codes = (x / torch.where(step == 0, 1, step)).round()
    return (codes * step.half().float()).view_as(w_NK)


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


LLAMA = (
    Way("Q4_0", lambda columns: 4.5, lambda w: symmetric(w, 4)),
    Way("Q4_1", lambda columns: 5.0, q4_1),
    Way("Q5_0", lambda columns: 5.5, lambda w: symmetric(w, 5)),
    Way("Q8_0", lambda columns: 8.5, q8_0),
)

WAYS = (
    *LLAMA,
    Way("4 bits, plain range", _int4_bits, lambda w: affine(w, plain_range)),
    Way("4 bits, clip search", _int4_bits, lambda w: affine(w, clipped_ranges)),
    Way("4 bits, HQQ", _int4_bits, lambda w: affine(w, half_quadratic)),
    scheme("int4"),
    Way("8 bits, a scale for each row", lambda columns: 8 + 16 / columns, int8_rows),
    scheme("int8"),
)


def bundled_experts(every: int) -> list[Tensor]:
    """Two matrices of each of every so many experts of the bundled model, float32."""
    checkpoint = Checkpoint.open("bundled")
    found = []
    for key in list(checkpoint.keys())[::every]:
        layout = checkpoint.layout(key)
        record = bytearray(layout.nbytes)
        checkpoint.read_into(key, memoryview(record))
        for place in layout.fields:
            value = torch.frombuffer(record, dtype=torch.bfloat16, count=place.nbytes // 2, offset=place.offset)
            found.append(value.view(place.shape).float())
    return found


def random_experts(count: int) -> list[Tensor]:
    """Two matrices each of so many experts of Qwen3-30B-A3B's size with normal random weights in bf16, as float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1536, 2048), (2048, 768))
    return [torch.randn(s, generator=generator).bfloat16().float() for _ in range(count) for s in shapes]


def relative_error(weights: list[Tensor], rounding: Round) -> float:
    """√(Σ error² / Σ weight²)."""
    wrong = sum((rounding(w) - w).square().sum().item() for w in weights)
    return float((wrong / sum(w.square().sum().item() for w in weights)) ** 0.5)


def bits_per_weight(way: Way, weights: list[Tensor]) -> float:
    """Scales included."""
    return sum(way.bits(w.shape[1]) * w.numel() for w in weights) / sum(w.numel() for w in weights)


def errors(report: Report, quick: bool) -> dict[str, dict[str, float]]:
    """Adds the first table; returns the errors by way."""
    sets = {
        "bundled model": bundled_experts(32 if quick else 4),
        "random, 30B's size": random_experts(1 if quick else 4),
    }
    head = [f"{name}: {what}" for name in sets for what in ("bits", "relative error")]
    table = report.table("Rounding alone:", ("way", *head))
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        print(f"rounding: {way.name}", file=sys.stderr, flush=True)
        cells = []
        for name, weights in sets.items():
            error = relative_error(weights, way.round)
            found.setdefault(way.name, {})[name] = error
            cells += [f"{bits_per_weight(way, weights):.2f}", f"{error:.4f}"]
        table.rows.append((way.name, *cells))
    report.values["errors"] = found
    return found


def rounded_checkpoint(directory: Path, way: Way) -> float:
    """Writes the bundled model with its experts rounded in some way; returns the MiB that they would take."""
    shutil.rmtree(directory, ignore_errors=True)
    source = Path(resolve_path("bundled"))
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    checkpoint = Checkpoint.open("bundled")
    experts = {name for key in checkpoint.keys() for name in checkpoint.names_of(key)}
    weights = {name: value for path in source.glob("*.safetensors") for name, value in load_file(path).items()}
    nbytes = 0.0
    for name in experts:
        value = weights[name]
        columns = value.shape[-1]
        rounded = way.round(value.float().reshape(-1, columns))
        weights[name] = rounded.view(value.shape).to(value.dtype).contiguous()
        nbytes += way.bits(columns) * value.numel() / 8
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return nbytes / 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that is measured.

    Attributes:
        model: Opened.
        experts: MiB of its experts' records, scales included.
        dense: MiB of everything else in memory.
    """

    model: Any
    experts: float
    dense: float


def candidates(folder: Path) -> dict[str, Candidate]:
    """The bundled model in every scheme of ours, and rounded as llama.cpp's formats do."""
    found: dict[str, Candidate] = {}
    for number, (name, schemes) in enumerate(STORES.items()):
        store = folder / f"store-{number}"
        shutil.rmtree(store, ignore_errors=True)
        extract("bundled", store, component="thinker", **schemes)
        facts = inspect(store)
        # All experts fit: what is measured is the store, not the cache.
        model = load(store, expert_memory="64MiB")
        found[name] = Candidate(model=model, experts=payload_mib(store), dense=facts.dense_memory_nbytes / 2**20)
    for way in LLAMA:
        mib = rounded_checkpoint(folder / way.name, way)
        model = load(folder / way.name, component="thinker", expert_memory="64MiB")
        found[way.name] = Candidate(model=model, experts=mib, dense=found["native"].dense)
    return found


def payload_mib(store: Path) -> float:
    """Bytes of the records' fields, without the padding to whole pages that small experts have much of."""
    manifest = json.loads((store / "coterie.json").read_bytes())
    opened = [record for bank in manifest["banks"] for part in bank["segments"] for record in part["experts"]]
    ends = {
        name: sum(math.prod(one["shape"]) * {"BF16": 2}.get(one["dtype"], 1) for one in layout["fields"])
        for name, layout in manifest["layouts"].items()
    }
    return sum(ends[record["layout"]] for record in opened) / 2**20


def on_the_curve(points: Mapping[float, float], size: float) -> float:
    """Divergence at a size, on the line through the neighbouring points, the divergence on a logarithmic scale."""
    sizes = sorted(points)
    above = next((at for at, one in enumerate(sizes) if one >= size), len(sizes) - 1)
    above = max(1, above)
    left, right = sizes[above - 1], sizes[above]
    share = (size - left) / (right - left)
    return math.exp((1 - share) * math.log(points[left]) + share * math.log(points[right]))


def quality(report: Report, folder: Path, arguments: Any) -> dict[str, tuple[Candidate, Quality, Comparison]]:
    """Adds the second table; returns what it shows, by model."""
    tried = candidates(folder)
    full = tried["native"].model
    tokenizer = load_tokenizer(full.coterie.source.directory)
    count = 1 if arguments.quick else WINDOWS
    passages = {
        domain: read_passage(tokenizer, domain, path, count) for domain, path in text_files(arguments.text).items()
    }
    scores: dict[str, dict[str, TokenScores]] = {}
    for domain, passage in passages.items():
        print(f"{domain}: {len(passage.windows)} windows", file=sys.stderr, flush=True)
        scores[domain] = compare(full, {name: one.model for name, one in tried.items()}, passage)
    texts: list[Passage] = list(passages.values())
    found: dict[str, tuple[Candidate, Quality, Comparison]] = {}
    for name, candidate in tried.items():
        total = summarise(name, [scores[domain][name] for domain in passages], texts)
        assert total.comparison is not None, "every model was compared"
        found[name] = candidate, total, total.comparison
    table = report.table(
        f"The bundled model over {found['native'][1].tokens:,} predicted tokens:",
        ("experts", "MiB of experts", "MiB of the rest", "nats/token", "perplexity ÷ full", "same-top", "mean KLD"),
    )
    for name, (candidate, total, compared) in sorted(found.items(), key=lambda one: -one[1][0].experts):
        row = (f"{candidate.experts:.1f}", f"{candidate.dense:.1f}", f"{total.loss.value:.4f}")
        figures = (f"{compared.ratio.value:.4f}", f"{compared.same_top.value:.2%}", _interval(compared))
        table.rows.append((name, *row, *figures))
        report.values[name] = asdict(total) | {"mib": candidate.experts, "dense_mib": candidate.dense}
    return found


def _interval(compared: Comparison) -> str:
    return f"{compared.kld.value:.5f} ({compared.kld.low:.5f} to {compared.kld.high:.5f})"


def main() -> int:
    """Measures and reports; exit status 1 if something that must hold does not."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="one more text to measure")
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    report = Report("schemes", "Schemes", work=arguments.work_dir, quick=arguments.quick)
    wrong = errors(report, arguments.quick)
    for name in next(iter(wrong.values())):
        ours = wrong["int4"][name]
        others = {way: error[name] for way, error in wrong.items() if way.startswith(("4", "Q4_0"))}
        least = min(others, key=others.__getitem__)
        report.require(
            f"int4 errs less than every other way of 4 bits ({name})",
            f"{ours:.4f}, the best other is {least} with {others[least]:.4f}",
            ours < others[least],
        )
    found = quality(report, arguments.work_dir / "schemes", arguments)
    curve = {candidate.experts: compared.kld.value for candidate, _, compared in (found[way.name] for way in LLAMA)}
    for name in ("int4", "int8"):
        candidate, _, compared = found[name]
        theirs = on_the_curve(curve, candidate.experts)
        report.require(
            f"mean KLD of {name} is below the curve of llama.cpp's formats at its size",
            f"{compared.kld.value:.5f} against {theirs:.5f} at {candidate.experts:.1f} MiB",
            compared.kld.value < theirs,
        )
    report.require("native against itself", f"KLD {found['native'][2].kld.value}", found["native"][2].kld.value == 0)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
