"""What leaving out light experts saves in time: one full-size model in limited memory, with and without it, in turn.

``bench_drop_cold.py`` measures what ``--drop-cold`` costs in quality and saves in bytes, on a model that was trained.
This measures seconds, on a model of Qwen3-30B-A3B's size in a memory cgroup of 8 GiB. Each run is a process of its own
that starts with an empty page cache; with and without the option they take turns round by round, and a ratio is the
median over rounds of the ratio within one round.

The model is generated (``fullsize_model.py``), so its gate weights say nothing about a real model's: they are those of
router logits with a standard deviation of 1.5. A real model leaves out as many experts at another TAU. So the table
says what share of the choices was left out, and several TAU are measured. The text must be the same: whatever experts
add, this model's next token is clear.

    python benchmarks/bench_drop_cold_speed.py [--store STORE] [--limit 8] [--drop-cold 0.1 0.25 0.5]

Without ``--store`` the store is made in ``--work-dir`` if it is not there, which takes 17 GB. An interrupted benchmark
goes on with ``--resume``; ``--quick`` uses a model of 50 MB to see that it works.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fullsize.files import Files
from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES
from harness.cgroup import CgroupUnavailable
from harness.journal import Journal
from harness.machine import wait_until_quiet
from harness.options import options
from harness.page_cache import drop_everything
from harness.report import Report
from peers.case import Case, Outcome, median_and_quartiles
from peers.contest import Contest
from peers.engines import Coterie
from peers.sizes import FULL, GIB, QUICK, Sizes, size_name

SHARES = (0.1, 0.25, 0.5)
ALL = "all experts"


def add_table(report: Report, contest: Contest, case: Case, shares: dict[str, float], rounds: int) -> None:
    """A row for each TAU, beside that without the option."""
    dimensions = contest.model.dimensions
    choices = dimensions.layers * dimensions.top_k
    table = report.table(
        f"{case.name}, prompt of {case.prompt_tokens} tokens, {case.new_tokens - case.settle_tokens - 1} tokens "
        f"measured after {case.settle_tokens}; medians of {rounds} rounds:",
        ("TAU", "left out of a token's choices", "MiB read per token", "saved", "tokens/s", "times as fast"),
    )
    whole = _per_token(contest.of(case.name, ALL))
    for name in (ALL, *shares):
        outcomes = [one for one in contest.of(case.name, name) if one.expected and one.decode_tokens_per_s]
        if not outcomes:
            table.rows.append((name, *("–",) * 4, "; ".join(one.failure for one in contest.of(case.name, name))))
            continue
        left = [float(str(one.own["left_out"])) / (case.new_tokens - 1) / choices for one in outcomes]
        speed, low, high = median_and_quartiles([one.decode_tokens_per_s or 0.0 for one in outcomes])
        read = _per_token(outcomes)
        ratio = contest.ratio("decode", case.name, name, (ALL,))
        row = ("–", "", f"{read / 2**20:.0f}", "", f"{speed:.2f} ({low:.2f} … {high:.2f})", "")
        if name in shares:
            share = f"{median_and_quartiles(left)[0]:.1%}"
            row = (f"{shares[name]:g}", share, row[2], f"{1 - read / whole:.0%}", row[4], f"{ratio:.2f} ×")
            report.values[name] = {"share": shares[name], "left_out": left, "ratio": ratio}
        table.rows.append(row)
    report.values["outcomes"] = [{"round": key[0], **asdict(one)} for key, one in contest.outcomes.items()]


def _per_token(outcomes: Sequence[Outcome]) -> float:
    found = [one.bytes_per_token for one in outcomes if one.bytes_per_token is not None]
    return median_and_quartiles(found)[0] if found else float("nan")


def measured_case(sizes: Sizes, limit: int, timeout_s: float) -> Case:
    """One prompt and the tokens after it, in a cgroup."""
    return Case(
        name=f"{sizes.shape} in {size_name(limit)}",
        limit=limit,
        prompt_tokens=sizes.prompt,
        new_tokens=1 + sizes.settle + sizes.decode,
        settle_tokens=sizes.settle,
        timeout_s=timeout_s,
    )


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--store", type=Path, help="the store, made by fullsize_model.py; by default in --work-dir")
    parser.add_argument("--limit", type=float, metavar="GIB", help="the memory cgroup (8)")
    parser.add_argument("--drop-cold", type=float, nargs="+", metavar="TAU", default=SHARES, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for one run (%(default)g)")
    parser.add_argument("--resume", action="store_true", help="keep the runs that an interrupted benchmark has made")
    given = parser.parse_args()
    # Killed politely, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))
    sizes = QUICK if given.quick else FULL
    limit = int(given.limit * GIB) if given.limit else QUICK.limits[0] if given.quick else 8 * GIB
    rounds = 1 if given.quick else given.rounds
    given.work_dir.mkdir(parents=True, exist_ok=True)
    store = given.store
    if store is None:
        files = Files(given.work_dir, sizes.shape)
        files.make("store")
        store = files.store
    shares = {f"--drop-cold {share:g}": share for share in given.drop_cold}
    engines = [Coterie(store, given.threads, ALL)]
    engines += [Coterie(store, given.threads, name, drop_cold=share) for name, share in shares.items()]
    case = measured_case(sizes, limit, given.timeout)
    wait_until_quiet(given.wait_quiet)
    report = Report("drop_cold_speed", "Time saved by leaving out light experts", work=given.work_dir,
                    quick=given.quick)  # fmt: skip
    contest = Contest(
        FullSizeModel(SHAPES[sizes.shape]), Journal(given.work_dir / "drop-cold-speed.jsonl", resume=given.resume)
    )
    try:
        drop_everything()
        for number in range(rounds):
            contest.run(case, engines, number)
    except CgroupUnavailable as reason:
        raise SystemExit(f"This benchmark needs a memory cgroup (root, cgroup v1 or v2): {reason}.") from reason
    except PermissionError as reason:
        raise SystemExit(f"This benchmark empties the page cache, which takes root: {reason}.") from reason
    add_table(report, contest, case, shares, rounds)
    for name in (ALL, *shares):
        outcomes = contest.of(case.name, name)
        right = sum(one.expected and not one.oom_kills for one in outcomes)
        report.require(f"{name}: the right text, not killed", f"{right} of {len(outcomes)}", right == len(outcomes))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
