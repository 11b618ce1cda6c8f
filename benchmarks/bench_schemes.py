"""What the schemes lose: relative errors of ways to choose scales, and quality of the bundled model in each scheme.

First table: sampled experts of the bundled model, and experts of Qwen3-30B-A3B's size with normal random weights,
rounded in several ways to about as many bits. `Q4_0`, `Q4_1`, `Q5_0` and `Q8_0` round to nearest in groups of 32, as
llama.cpp has them; HQQ is half-quadratic quantisation (Badri and Shaji 2023) with its published settings; the clip
search tries 16 shares of each group's range. Bits count scales and zeros.

Second table: the evaluation text through stores of each scheme, and through the model with its experts rounded as
llama.cpp's formats do, beside the full model; the figures are those of `coterie evaluate`. What counts is the curve of
divergence against bytes: where a format has another size than ours, its divergence at our size is read off the line
between its neighbours, on a logarithmic scale.

Third table: the same of a model of random weights with a normal distribution, 4 GB, of the shape of three layers of
Qwen3-30B-A3B, on random tokens. There int4 takes as many bits as Q4_0.

Nothing here depends on the machine's speed.

    python benchmarks/bench_schemes.py [--text dialogue=FILE]
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie import extract, inspect, load
from coterie.checkpoint import Checkpoint
from coterie.engine import resolve_path
from coterie.evaluate import Comparison, Quality, Text, TokenScores, Window, predict, score
from coterie.hf.tokenizer import load_tokenizer
from coterie.quant import SCHEMES
from harness.options import options
from harness.report import Report, Table
from perplexity import WINDOW, Passage, compare, read_passage, summarise, text_files
from schemes.rounded import rounded_checkpoint
from schemes.ways import LLAMA, WAYS, Round, Way
from synthetic import Dimensions, write_checkpoint

WINDOWS = 8
"""Windows of 255 predictions of each text."""

RANDOM_WINDOWS = 6
"""Of random tokens for the random model."""

STORES: dict[str, dict[str, str]] = {
    "native": {},
    "int8": {"scheme": "int8"},
    "int4": {"scheme": "int4"},
    "int4, linear layers int8": {"scheme": "int4", "dense_scheme": "int8"},
    "int4, linear layers int4": {"scheme": "int4", "dense_scheme": "int4"},
}


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
        mib = rounded_checkpoint(Path(resolve_path("bundled")), folder / way.name, way)
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


def random_quality(report: Report, folder: Path, quick: bool) -> dict[str, tuple[float, Quality]]:
    """Adds the third table; returns MiB of experts and quality by model. One model is in memory at a time."""
    size = Dimensions(layers=1, experts=16) if quick else Dimensions(layers=3)
    source = folder / "random"
    shutil.rmtree(source, ignore_errors=True)
    print("random model: writing", file=sys.stderr, flush=True)
    write_checkpoint(source, size, normal=True)
    windows = 1 if quick else RANDOM_WINDOWS
    ids = torch.randint(size.vocabulary, (windows * WINDOW,), generator=torch.Generator().manual_seed(1))
    text = Text(name="random tokens", ids=tuple(ids.tolist()))
    starts = range(0, len(text.ids), WINDOW)
    passage = Passage(text=text, windows=tuple(Window(start=at, first=at + 1, stop=at + WINDOW) for at in starts))
    full: list[Tensor] = []
    found: dict[str, tuple[float, Quality]] = {}
    for name in ("native", "Q4_0", "int4"):
        print(f"random model: {name}", file=sys.stderr, flush=True)
        mib, path = _random_candidate(source, folder / "random-rounded", name, size)
        model = load(path, memory="8GiB", max_context=WINDOW)
        logits = [predict(model, text, window) for window in passage.windows]
        full = full or logits
        scores = [
            score(ours, text.ids[window.predicted], reference)
            for ours, reference, window in zip(logits, full, passage.windows, strict=True)
        ]
        found[name] = mib, summarise(name, [TokenScores.join(scores)], [passage])
        model.coterie.close()
        del model
        if path != source:
            shutil.rmtree(path)
    shutil.rmtree(source)
    _add_random_table(report, found)
    return found


def _random_candidate(source: Path, directory: Path, name: str, size: Dimensions) -> tuple[float, Path]:
    """MiB of the experts, and the model in this way of rounding."""
    if name == "native":
        return size.experts_nbytes / 2**20, source
    if name in SCHEMES:
        extract(source, directory, scheme=name)
        return payload_mib(directory), directory
    return rounded_checkpoint(source, directory, next(way for way in LLAMA if way.name == name)), directory


def _add_random_table(report: Report, found: Mapping[str, tuple[float, Quality]]) -> None:
    tokens = found["native"][1].tokens
    columns = ("experts", "MiB of experts", "perplexity ÷ full", "same-top", "mean KLD")
    table: Table = report.table(f"A random model, over {tokens:,} predicted tokens:", columns)
    for name, (mib, total) in found.items():
        compared = total.comparison
        assert compared is not None, "every model was compared"
        figures = (f"{compared.ratio.value:.4f}", f"{compared.same_top.value:.2%}", _interval(compared))
        table.rows.append((name, f"{mib:.1f}", *figures))
        report.values[f"random: {name}"] = asdict(total) | {"mib": mib}


def _interval(compared: Comparison) -> str:
    kld = compared.kld
    # Of few windows there is no interval.
    return f"{kld.value:.5f}" + ("" if kld.low is None else f" ({kld.low:.5f} to {kld.high:.5f})")


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
    folder = arguments.work_dir / "schemes"
    found = quality(report, folder, arguments)
    curve = {candidate.experts: compared.kld.value for candidate, _, compared in (found[way.name] for way in LLAMA)}
    for name in ("int4", "int8"):
        candidate, _, compared = found[name]
        theirs = on_the_curve(curve, candidate.experts)
        report.require(
            f"mean KLD of {name} is below the curve of llama.cpp's formats at its size",
            f"{compared.kld.value:.5f} against {theirs:.5f} at {candidate.experts:.1f} MiB",
            compared.kld.value < theirs,
        )
    at_random = {name: total.comparison for name, (_, total) in random_quality(report, folder, arguments.quick).items()}
    ours, theirs = at_random["int4"], at_random["Q4_0"]
    assert ours is not None, "every model was compared"
    assert theirs is not None, "every model was compared"
    report.require(
        "mean KLD of int4 is below that of Q4_0, of the same size (random model)",
        f"{ours.kld.value:.6f} against {theirs.kld.value:.6f}",
        ours.kld.value < theirs.kld.value,
    )
    report.require("native against itself", f"KLD {found['native'][2].kld.value}", found["native"][2].kld.value == 0)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
