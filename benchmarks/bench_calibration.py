"""Codes chosen by calibration against codes rounded to nearest: the same bytes, how far from the full model.

The evaluation texts are cut at blank lines into documents. A document's SHA-256 says what it is for: if its first byte
is even, the model is calibrated on it, else it is scored on it. So no document is used for both, whoever repeats this.
Windows of 256 tokens are scored as in the other benchmarks. The ratio of two stores' mean divergence is paired: both
are scored on the same windows, and its interval comes from leaving out one window after the other (jackknife).

Nothing here depends on the machine's speed, but for the time that calibration takes.

    python benchmarks/bench_calibration.py [--text dialogue=FILE]
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coterie import load, quantize
from coterie.calibration import DEFAULT_TOKENS, Calibration
from coterie.hf.tokenizer import load_tokenizer
from coterie.quant import SCHEMES
from coterie.survey import Material, gather
from harness.held_out import ratio, split_into
from harness.options import options
from harness.report import Report
from perplexity import compare, read_passage, text_files

MOST = 0.65
"""Of the divergence of codes rounded to nearest, what calibrated codes may have in int4."""

LEAST_TOKENS = 18_000
"""That are scored."""

_WINDOWS = 1_000


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="a further text")
    parser.add_argument("--scheme", action="append", choices=sorted(SCHEMES), help="default: all")
    parser.add_argument("--memory", default="2GiB", help="budget of the calibration (%(default)s)")
    arguments = parser.parse_args()
    report = Report("calibration", "Calibrated codes", work=arguments.work_dir, quick=arguments.quick)
    folder = arguments.work_dir / "calibration"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    material: list[Material] = []
    scored: dict[str, Path] = {}
    for domain, path in text_files(arguments.text).items():
        own, scored[domain] = split_into(path, folder, domain)
        material += gather("text", domain, own)
    calibration = Calibration(
        material=material, tokens=4_000 if arguments.quick else DEFAULT_TOKENS, memory=arguments.memory
    )
    schemes = arguments.scheme or sorted(SCHEMES, key=lambda name: SCHEMES[name].form.bits)
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
    windows: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for name in models}
    tokens = 0
    for domain, path in scored.items():
        passage = read_passage(tokenizer, domain, path, 2 if arguments.quick else _WINDOWS)
        print(f"{domain}: {len(passage.windows)} windows", file=sys.stderr, flush=True)
        for name, scores in compare(full, models, passage).items():
            assert scores.kld is not None, "every model was compared"
            windows[name][domain] = scores.kld.reshape(len(passage.windows), -1).mean(axis=1)
        tokens += sum(window.tokens for window in passage.windows)
    table = report.table(
        f"The bundled model over {tokens:,} predicted tokens of documents that calibration did not see; mean KLD, and "
        "its ratio to that of codes rounded to nearest, with 95 % intervals:",
        ("experts", "KLD", "ratio", "windows worse", *scored, "seconds"),
    )
    for scheme in schemes:
        base = windows[scheme]
        for name in (scheme, f"{scheme} calibrated"):
            mine = windows[name]
            every, other = np.concatenate([*mine.values()]), np.concatenate([*base.values()])
            value, half = ratio(every, other)
            table.rows.append(
                (
                    name,
                    f"{every.mean():.5f}",
                    "1" if name == scheme else f"{value:.3f} ± {half:.3f}",
                    "" if name == scheme else f"{int((every > other).sum())} of {len(every)}",
                    *(f"{mine[domain].mean():.5f}" for domain in scored),
                    f"{seconds[name]:.0f}",
                )
            )
            report.values[name] = {"kld": every.mean(), "ratio": value, "half_interval": half, "tokens": tokens}
            if name != scheme and scheme == "int4" and not arguments.quick:
                requirement = f"int4: calibrated at most {MOST} × as far from the full model"
                report.require(requirement, f"{value:.3f} ± {half:.3f}", value <= MOST)
                report.require(f"at least {LEAST_TOKENS:,} tokens", f"{tokens:,}", tokens >= LEAST_TOKENS)
    for model in (full, *models.values()):
        model.coterie.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
