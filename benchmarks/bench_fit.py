"""What `coterie fit` makes of the bundled model for code, beside a uniform store of the same size.

The evaluation texts are cut into documents. Some decide: the profile is recorded on them, and codes are calibrated on
them. The others are scored (see harness/held_out.py). The store has 2.94 bits per weight where groups of 64 and of 96
are possible; the bundled model's `down` matrices have rows of 96, and so groups of 32, which take more for their
scales: it has the bits of a uniform store half of whose experts are `int3` and half `int2`. Beside it `fit` makes a
uniform store of that size itself, with as many experts in either scheme.

The ratio of the two divergences is paired, token by token. What is measured is what `fit` itself says: its card.

    python benchmarks/bench_fit.py [--bits 2.94]
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace

from coterie.evaluate import Estimate
from coterie.extraction.quantising import record_layouts
from coterie.fitting import Fit, FitProgress, FitRequest, fit
from coterie.origins import CheckpointOrigin
from coterie.spec import RecordLayout
from coterie.spec.parameters import weight_count
from coterie.survey import gather
from harness.held_out import split_into
from harness.options import options
from harness.report import Report
from perplexity import text_files

MOST_FOR_CODE = 0.35
"""Of a uniform store's divergence on code, what the store may have."""

NAMED = 2.94
"""Bits per weight in whole groups of 64 and 96: those of int3 in half of the experts and int2 in the others."""

LEAST_TOKENS = 18_000
"""That are scored, of all domains."""

LIMIT = 4_096
"""Tokens of each domain that are scored, at most."""


def bits_of(scheme: str) -> float:
    """Bits per weight of the bundled model's experts in a scheme, scales counted."""
    origin = CheckpointOrigin.open("bundled")
    layouts: list[RecordLayout] = [record_layouts(origin, scheme)[key.bank_key] for key in origin.keys()]
    return 8 * sum(one.payload_nbytes for one in layouts) / sum(map(weight_count, layouts))


def interval(value: Estimate, digits: int = 5) -> str:
    """A figure with half of its interval."""
    if value.low is None or value.high is None:
        return f"{value.value:.{digits}f}"
    return f"{value.value:.{digits}f} ± {(value.high - value.low) / 2:.{digits}f}"


def main() -> int:
    """Measures and reports; exit status 1 if something that must hold does not."""
    parser = options(__doc__)
    parser.add_argument("--bits", type=float, help="bits per weight (default: those of half int3, half int2)")
    parser.add_argument("--text", action="append", default=[], metavar="DOMAIN=FILE", help="a further text")
    parser.add_argument("--memory", default="2GiB", help="budget of the store and of the work (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with what an interrupted run has made")
    arguments = parser.parse_args()
    report = Report("fit", "Fitted for code", work=arguments.work_dir, quick=arguments.quick)
    folder = arguments.work_dir / "fit"
    if not arguments.resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {domain: split_into(path, folder, domain) for domain, path in text_files(arguments.text).items()}
    bits = arguments.bits or (bits_of("int2") + bits_of("int3")) / 2
    request = FitRequest(
        memory=arguments.memory,
        bits=bits,
        domains=("code",),
        modalities=("text",),
        material=[one for domain, (own, _) in texts.items() for one in gather("text", domain, own)],
        texts=[one for domain, (_, scored) in texts.items() for one in gather("text", domain, scored)],
        limit=LIMIT,
    )
    if arguments.quick:
        request = replace(request, limit=1_536, calibration_tokens=4_000)
    found = fit("bundled", folder / "store", request, progress=_tell())
    tabulate(report, found, (folder / "store" / "README.md").read_text(encoding="utf-8"), quick=arguments.quick)
    status = report.finish()
    shutil.rmtree(folder)
    return status


def _tell():
    last = ""

    def tell(progress: FitProgress) -> None:
        nonlocal last
        now = f"{progress.number} of {progress.stages}: {progress.stage} {progress.what}"
        if now != last:
            last = now
            print(now, file=sys.stderr, flush=True)

    return tell


def tabulate(report: Report, found: Fit, card: str, *, quick: bool) -> None:
    """The table and the verdicts."""
    assert found.uniform is not None, "a uniform store was made"
    made, uniform = found.made, found.uniform
    rows = found.evaluated.figures
    every = rows[-1]
    asked = sum(one.allocation.asked_nbytes for one in made.allocation.components)
    table = report.table(
        f"The bundled model fitted for code: {made.store.bits:.2f} bits per weight, "
        f"{made.allocation.facts.left_out} of {made.store.experts_total} experts left out; uniform: "
        f"{uniform.name}, {uniform.store.bits:.2f} bits. A token "
        f"asks for {asked / 2**10:.0f} KiB of experts, of the uniform store for {uniform.asked_nbytes / 2**10:.0f}. "
        "Mean KLD over documents that neither the profile nor calibration saw, with 95 % intervals; ratios are paired.",
        ("text", "tokens", "fitted for code", "predicted", "uniform", "ratio"),
    )
    for row in rows:
        assert row.uniform is not None, "both were evaluated"
        assert row.beside is not None, "both were evaluated"
        table.rows.append(
            (
                row.domain,
                f"{row.tokens:,}",
                interval(row.kld),
                "" if row.predicted is None else f"{row.predicted:.5f}",
                interval(row.uniform),
                "" if row.beside.ratio is None else interval(row.beside.ratio, 3),
            )
        )
        report.values[row.domain] = {"kld": row.kld.value, "uniform": row.uniform.value, "tokens": row.tokens}
    report.values["bits"] = made.store.bits
    code = next(row for row in rows if row.domain == "code")
    assert code.beside is not None, "both were evaluated"
    assert code.beside.ratio is not None, "a uniform store loses something"
    report.require(
        f"fitted for code ({NAMED}): at most {MOST_FOR_CODE} × as far from the full model as uniform, on code",
        interval(code.beside.ratio, 3),
        code.beside.ratio.value <= MOST_FOR_CODE,
    )
    said = all(f"| {row.domain} | {row.tokens:,} | {row.kld.value:.5f}" in card for row in rows)
    report.require("its card states what the other domains lose", "yes" if said else "no", said)
    report.require(f"at least {LEAST_TOKENS:,} tokens", f"{every.tokens:,}", every.tokens >= LEAST_TOKENS or quick)


if __name__ == "__main__":
    sys.exit(main())
