"""Decoding with all experts resident, against stock transformers' experts implementations.

The bundled model's experts are tiny (3 × 96 × 256 values): a decode step is 8 layers × 4 experts of about 10 µs of
arithmetic each, so what is measured is the cost of calls, and the ceiling is the model's glue (attention, norms,
router), which all contestants share. Stock's ``eager`` loops over the experts that were hit; ``batched_mm`` gathers
the chosen experts' weights and multiplies them in one batch; ``grouped_mm`` sorts and multiplies by groups. Coterie's
own path for a single token looks experts up, sorts nothing, and sums in eager's order to eager's bits.

All models live in one process; every round each takes a few greedy decode steps of one long generation, in rotating
order, and the time is that of the steps alone, without prefill: rounds so short see the same machine, however busy it
is. Coterie's tokens must equal those of stock eager.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from harness.generation import Decoding
from harness.machine import load_average, wait_until_quiet
from harness.options import options
from harness.paired import interleave
from harness.report import Report

STOCK = ("eager", "batched_mm", "grouped_mm")
COTERIE = "coterie"


def open_models() -> dict[str, Any]:
    """The contestants by name."""
    import transformers

    from coterie.engine import load, open_source

    source = open_source("bundled")
    model_class = getattr(transformers, source.model_class.__name__)
    models = {
        name: model_class.from_pretrained(source.directory, dtype=source.dtype, experts_implementation=name).eval()
        for name in STOCK
    }
    models[COTERIE] = load("bundled", expert_memory="100%")
    return models


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    import torch

    wait_until_quiet(given.wait_quiet)
    report = Report("decode", "Decoding the bundled model, all experts resident", work=given.work_dir.parent,
                    quick=given.quick)  # fmt: skip
    models = open_models()
    steps, rounds = (4, 4) if given.quick else (8, 120)
    prompt = torch.randint(16, 200, (1, 16), generator=torch.Generator().manual_seed(0))

    for threads in given.threads:
        torch.set_num_threads(threads)
        decodings = {name: Decoding(model, prompt) for name, model in models.items()}
        timings = interleave({name: partial(one.steps, steps) for name, one in decodings.items()}, rounds)
        if decodings[COTERIE].tokens != decodings["eager"].tokens:
            raise SystemExit("Coterie's tokens differ from stock eager's.")
        best = min(STOCK, key=timings.median)
        table = report.table(
            f"{threads} thread(s), {rounds} interleaved rounds of {steps} tokens, load average {load_average():.2f}:",
            ("experts", "ms/token, median", "quartiles", f"ratio to {best}, the best of stock"),
        )
        for name in models:
            low, high = timings.spread(name)
            table.rows.append(
                (
                    name if name == COTERIE else f"transformers {name}",
                    f"{1e3 * timings.median(name):.2f}",
                    f"{1e3 * low:.2f} … {1e3 * high:.2f}",
                    f"{timings.ratio(name, best):.2f}",
                )
            )
        ratio = timings.ratio(COTERIE, best)
        report.require(f"{threads} thread(s): no slower than the best of stock ({best})", f"{ratio:.2f}", ratio <= 1.0)
        report.values[f"{threads} threads"] = {"ratio": ratio, "best": best, "rounds": timings.rounds}
    models[COTERIE].coterie.close()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
