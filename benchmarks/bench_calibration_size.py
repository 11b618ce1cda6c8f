"""How long calibration takes, and that it lives in less memory than the model.

What costs is choosing codes: for a matrix of N rows and K columns about 7 products of N·K·K multiplications, a Cholesky
factor of K·K, and a walk over its columns. So the time per weight grows with K. The first table has the matrices of
Qwen3-30B-A3B, on their own: processor seconds of one thread, which other programs change little.

With --gigabytes a checkpoint of that size, of random weights, is written and calibrated within a memory cgroup. It is
killed on the way, after --kill-after seconds, and goes on when the same command is given again. The checkpoint and the
store are removed at the end.

    python benchmarks/bench_calibration_size.py --gigabytes 5 --limit 2GiB
"""

from __future__ import annotations

import shutil
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch

import coterie
from coterie.inspection import verify
from coterie.quant import SCHEMES
from coterie.quant.calibrated import choose_codes
from coterie.spec import format_bytes, parse_bytes
from coterie.spec.encodings import USUAL_SCHEMES
from coterie.store import Store
from harness.cgroup import CgroupRun, run_in_cgroup, why_unavailable
from harness.options import options
from harness.report import Report
from synthetic import Dimensions, write_checkpoint

MATRICES = {"gate and up": (1536, 2048), "down": (2048, 768)}
"""Rows and columns of those of an expert of Qwen3-30B-A3B."""

_REPEATS = 2
_INPUTS = 4096


@torch.inference_mode()
def processor_seconds(scheme: str, rows: int, columns: int) -> tuple[float, float]:
    """The least that choosing the codes of a matrix took, and its error as a share of that of rounding to nearest."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(rows, columns, generator=generator).bfloat16()
    # Inputs that are correlated, as those of experts are.
    x = torch.randn(_INPUTS, columns, generator=generator) * torch.logspace(0, -1, columns)
    x += torch.randn(_INPUTS, 1, generator=generator)
    hessian = x.t() @ x
    took = []
    for _ in range(_REPEATS):
        begin = time.process_time()
        chosen = choose_codes(SCHEMES[scheme], weights, hessian)
        took.append(time.process_time() - begin)
    return min(took), chosen.error.output / chosen.error.nearest_output


def calibrated(checkpoint: Path, store: Path, arguments: Namespace, *command: str) -> CgroupRun:
    """One run of the command within the cgroup."""
    texts = ("--calibrate", "default", "--calibration-tokens", str(arguments.tokens))
    asked = ("quantize", str(checkpoint), str(store), "--scheme", arguments.scheme, *texts)
    limit = parse_bytes(arguments.limit, what="limit")
    return run_in_cgroup([*command, sys.executable, "-m", "coterie", *asked, "--memory", str(limit)], limit)


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--scheme", choices=USUAL_SCHEMES, default="int4", help="of experts (%(default)s)")
    parser.add_argument("--gigabytes", type=float, help="size of a checkpoint to calibrate; default: none")
    parser.add_argument("--hidden", type=int, default=2048, help="its width (%(default)s)")
    parser.add_argument("--expert-hidden", type=int, default=768, help="that of its experts (%(default)s)")
    parser.add_argument("--tokens", type=int, default=8192, help="to calibrate with (%(default)s)")
    parser.add_argument("--limit", default="2GiB", help="of the memory cgroup (%(default)s)")
    parser.add_argument("--kill-after", type=float, default=600.0, metavar="SECONDS", help="(%(default)s)")
    arguments = parser.parse_args()
    report = Report(
        "calibration_size", "Time and memory of calibration", work=arguments.work_dir, quick=arguments.quick
    )
    torch.set_num_threads(1)
    table = report.table(
        "Choosing the codes of the matrices of one expert of Qwen3-30B-A3B, one thread:",
        ("scheme", *(f"{name}, s" for name in MATRICES), "s per billion weights", "error ÷ rounded to nearest"),
    )
    weights = sum(rows * columns for rows, columns in MATRICES.values())
    for scheme in [arguments.scheme] if arguments.quick else USUAL_SCHEMES:
        found = [processor_seconds(scheme, rows, columns) for rows, columns in MATRICES.values()]
        per_billion = sum(seconds for seconds, _ in found) / weights * 1e9
        report.values[scheme] = {"seconds_per_billion_weights": per_billion}
        errors = ", ".join(f"{error:.2f}" for _, error in found)
        table.rows.append((scheme, *(f"{seconds:.2f}" for seconds, _ in found), f"{per_billion:.0f}", errors))
    if arguments.gigabytes:
        _within_a_cgroup(report, arguments)
    return report.finish()


def _within_a_cgroup(report: Report, arguments: Namespace) -> None:
    reason = why_unavailable()
    if reason is not None:
        raise SystemExit(f"No memory cgroup: {reason}")
    hidden, expert_hidden = arguments.hidden, arguments.expert_hidden
    one = Dimensions(layers=1, hidden=hidden, expert_hidden=expert_hidden)
    layers = max(1, round(arguments.gigabytes * 1e9 / one.experts_nbytes))
    dimensions = Dimensions(layers=layers, hidden=hidden, expert_hidden=expert_hidden)
    folder = arguments.work_dir / "calibration-size"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        checkpoint = write_checkpoint(folder / "checkpoint", dimensions)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(coterie.__file__).parent / "bundled" / name, checkpoint)
        store = folder / "store"
        after = str(arguments.kill_after)
        runs = [calibrated(checkpoint, store, arguments, "timeout", "-s", "KILL", after)]
        stopped = not (store / "coterie.json").exists()
        if stopped:
            runs.append(calibrated(checkpoint, store, arguments))
        done = runs[-1].returncode == 0
        if not done:
            print(runs[-1].stderr[-2000:], file=sys.stderr)
        errors = [record.errors for _, record in Store.open(store).manifest.places.values()] if done else []
        billions = dimensions.experts_nbytes / 2e9
        seconds = sum(run.seconds for run in runs)
        most = max(max(run.resident, run.high_water) for run in runs)
        size = sum(file.stat().st_size for file in checkpoint.iterdir())
        table = report.table(
            f"A checkpoint of {format_bytes(size)} ({layers} layers of 128 experts, {hidden} and {expert_hidden} "
            f"wide), calibrated as {arguments.scheme} with {arguments.tokens:,} tokens "
            f"in a memory cgroup of {arguments.limit}:",
            ("runs", "minutes", "minutes per billion weights", "most memory", "killed for memory"),
        )
        table.rows.append(
            (
                f"{len(runs)}, the first stopped by SIGKILL" if stopped else "1",
                f"{seconds / 60:.1f}",
                f"{seconds / 60 / billions:.1f}",
                format_bytes(most),
                "yes" if any(run.oom_kills for run in runs) else "no",
            )
        )
        report.values["cgroup"] = {"seconds": seconds, "bytes": size, "most": most, "runs": len(runs)}
        report.require(
            "finished, and never killed for memory", f"{len(runs)} runs", done and not any(r.oom_kills for r in runs)
        )
        better = bool(errors) and all(one is not None and one.output <= one.nearest for one in errors)
        report.require("no expert is worse than rounded to nearest", f"{len(errors)} experts", better)
        whole = done and verify(store, against=checkpoint).ok
        report.require("the store is what was made of the checkpoint", "verified", whole)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
