"""Codes chosen by calibration against codes rounded to nearest: the same bytes, how far from the full model.

Calibrated with the texts that come with the package, `--calibrate default`. Scored on the evaluation texts, of which no
document is among those (tests/calibration/test_default_texts.py), and on six languages that neither the model's
training nor calibration has. Windows of 256 tokens are scored as in the other benchmarks. The ratio of two stores' mean
divergence is paired: both are scored on the same windows, and its interval comes from leaving out one window after the
other (jackknife).

With --speech and --images it also counts the words that are heard and the pictures that are named as their labels say.
Each is a directory with sound files or pictures, and a file `labels.tsv` of their names and texts.

Nothing here depends on the machine's speed, but for the time that calibration takes.

    python benchmarks/bench_calibration.py [--text dialogue=FILE] [--speech DIR] [--images DIR]
"""

from __future__ import annotations

import csv
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie import load, quantize
from coterie.calibration import DEFAULT_TOKENS, Calibration
from coterie.generation.completion import complete
from coterie.generation.inputs import build_inputs
from coterie.generation.opened import OpenModel
from coterie.generation.sampling import Sampling
from coterie.hf.tokenizer import load_tokenizer
from coterie.spec.encodings import USUAL_SCHEMES
from harness.held_out import ratio
from harness.options import options
from harness.report import Report
from perplexity import TEXTS, compare, read_passage, text_files

MOST = {"int4": (0.65, None), "int3": (None, 0.0075), "int2": (None, 0.035)}
"""What calibrated codes may have at most: of the divergence of codes rounded to nearest, and of divergence."""

LEAST_TOKENS = 18_000
"""That are scored."""

UNSEEN = TEXTS.parent / "unseen"
_WINDOWS = 17
"""Of each text: about 4,300 tokens."""

_WORD = Sampling(max_new_tokens=12, greedy=True)

Windows = NDArray[np.float64]


def labelled(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files of a directory, and what they are called."""
    with (folder / "labels.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            yield folder / row["file"], row["text"]


def recognised(model: Any, kind: str, folder: Path, most: int | None) -> str:
    """How many files the model names as their labels do."""
    opened = OpenModel.of(model)
    right = count = 0
    for path, label in list(labelled(folder))[:most]:
        inputs = build_inputs(opened.processors, "", **{kind: [path]}).to(model.dtype)
        said = complete(model, opened.processors.tokenizer, inputs, _WORD).text
        right += said.strip() == label
        count += 1
    return f"{right} of {count}"


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="a further text")
    parser.add_argument("--scheme", action="append", choices=USUAL_SCHEMES, help="default: int4, int3 and int2")
    parser.add_argument("--memory", default="2GiB", help="budget of the calibration (%(default)s)")
    parser.add_argument("--speech", type=Path, metavar="DIR", help="spoken words with labels.tsv")
    parser.add_argument("--images", type=Path, metavar="DIR", help="pictures with labels.tsv")
    arguments = parser.parse_args()
    report = Report("calibration", "Calibrated codes", work=arguments.work_dir, quick=arguments.quick)
    folder = arguments.work_dir / "calibration"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    calibration = Calibration(tokens=4_000 if arguments.quick else DEFAULT_TOKENS, memory=arguments.memory)
    schemes = arguments.scheme or ["int4", "int3", "int2"]
    stores: dict[str, Path] = {}
    seconds: dict[str, float] = {}
    for scheme in schemes:
        for name, how in ((scheme, None), (f"{scheme} calibrated", calibration)):
            print(f"making {name}", file=sys.stderr, flush=True)
            begin = time.monotonic()
            stores[name] = folder / name.replace(" ", "-")
            quantize("bundled", stores[name], scheme=scheme, calibration=how)
            seconds[name] = time.monotonic() - begin
    # All experts fit: what is measured is the store, not the cache.
    full = load("bundled", component="thinker", expert_memory="64MiB")
    models = {name: load(store, component="thinker", expert_memory="64MiB") for name, store in stores.items()}
    tokenizer = load_tokenizer(full.coterie.source.directory)
    windows: dict[str, dict[str, Windows]] = {name: {} for name in models}
    seen = text_files(arguments.text)
    unseen = {path.stem: path for path in sorted(UNSEEN.glob("*.txt"))}
    tokens = {"seen": 0, "unseen": 0}
    for domain, path in {**seen, **unseen}.items():
        passage = read_passage(tokenizer, domain, path, 2 if arguments.quick else _WINDOWS)
        print(f"{domain}: {len(passage.windows)} windows", file=sys.stderr, flush=True)
        for name, scores in compare(full, models, passage).items():
            assert scores.kld is not None, "every model was compared"
            windows[name][domain] = scores.kld.reshape(len(passage.windows), -1).mean(axis=1)
        tokens["seen" if domain in seen else "unseen"] += sum(window.tokens for window in passage.windows)
    media = {kind: place for kind, place in (("audios", arguments.speech), ("images", arguments.images)) if place}
    heard = {
        name: [recognised(model, kind, place, 4 if arguments.quick else None) for kind, place in media.items()]
        for name, model in {"full": full, **models}.items()
        if name == "full" or name.startswith("int4") or arguments.quick
    }

    def together(name: str, domains: dict[str, Path]) -> Windows:
        return np.concatenate([windows[name][domain] for domain in domains])

    table = report.table(
        f"The bundled model over {tokens['seen']:,} predicted tokens of documents that calibration did not see; mean "
        "KLD, and its ratio to that of codes rounded to nearest, with 95 % intervals:",
        ("experts", "KLD", "ratio", "windows worse", *seen, "seconds"),
    )
    others = report.table(
        f"Over {tokens['unseen']:,} tokens of {len(unseen)} languages that neither training nor calibration has"
        + (", and spoken words and pictures that are named right, none of which calibration has:" if media else ":"),
        ("experts", "KLD", "ratio", "windows worse", *media),
    )
    if media:
        others.rows.append(("full", "0", "", "", *heard["full"]))
    for scheme in schemes:
        for name in (scheme, f"{scheme} calibrated"):
            calibrated = name != scheme
            report.values[name] = {
                "tokens": tokens["seen"],
                "media": dict(zip(media, heard.get(name, ()), strict=False)),
            }
            for into, domains, more in (
                (table, seen, [*(f"{windows[name][domain].mean():.5f}" for domain in seen), f"{seconds[name]:.0f}"]),
                (others, unseen, heard.get(name, [""] * len(media))),
            ):
                mine, base = together(name, domains), together(scheme, domains)
                value, half = ratio(mine, base)
                worse = f"{int((mine > base).sum())} of {len(mine)}" if calibrated else ""
                shown = f"{value:.3f} ± {half:.3f}" if calibrated else "1"
                into.rows.append((name, f"{mine.mean():.5f}", shown, worse, *more))
                kind = "seen" if into is table else "unseen"
                report.values[name] |= {f"{kind}_kld": mine.mean(), f"{kind}_ratio": value, f"{kind}_half": half}
                if not calibrated or arguments.quick:
                    continue
                most_ratio, most_kld = MOST.get(scheme, (None, None)) if into is table else (1.0, None)
                if most_ratio is not None:
                    what = f"{scheme}: at most {most_ratio} × as far as rounded to nearest ({kind} languages)"
                    report.require(what, shown, bool(value + half <= 1 if into is others else value <= most_ratio))
                if most_kld is not None:
                    report.require(
                        f"{scheme}: KLD at most {most_kld}", f"{mine.mean():.5f}", bool(mine.mean() <= most_kld)
                    )
    if not arguments.quick:
        report.require(f"at least {LEAST_TOKENS:,} tokens", f"{tokens['seen']:,}", tokens["seen"] >= LEAST_TOKENS)
        for kind, before, after in zip(media, heard.get("int4", ()), heard.get("int4 calibrated", ()), strict=False):
            lost = int(before.split()[0]) - int(after.split()[0])
            report.require(f"int4: {kind} as before, within one", f"{before} → {after}", lost <= 1)
    for model in (full, *models.values()):
        model.coterie.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
