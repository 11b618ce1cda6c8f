"""Whether `coterie plan` is right: memory, hit rates and speed, planned beside measured.

*Memory.* A model is opened under a budget in a memory cgroup of that size, and reads prompts of many lengths up to its
whole context. The plan, without its margin, must never be below the peak of the process, and at most 10 % above it.

*Hit rates.* Recorded routing of public models is replayed by the policy of the cache, window by window, and compared
with the four grades of forecast. A grade never sees what it is compared with: the law knows dimensions, a known model
and a profile the other half of a recording, a probe the tokens before the window. Models that run here add what they
hit.

*Speed.* The plan measures the machine, then a text goes through the model, in each budget. The text is given, not
generated: the bundled model reads English prose and Python, a generated model the text that its routing was made for
(fullsize/walk.py). The plan is made without and with a probe, of the text's first tokens, which are not read again. For
the full-size model there are the kept results of bench_peers.py, and forecasts for the machine on which it ran; there
the cache had just begun to take its memory.

What is compared is what was printed: the whole range, and after a probe the likeliest value.

    python benchmarks/bench_planner.py                   all of it, in some 20 minutes, on a machine that is quiet
    python benchmarks/bench_planner.py --without-runs    only what recordings and kept results say
    python benchmarks/bench_planner.py --traces DIR      other recordings, as `coterie replay` reads them
    python benchmarks/bench_planner.py --full DIR        with the full-size store in DIR, in 6, 8 and 12 GiB
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from accuracy import kept, replayed, tables
from accuracy.runs import Subject, Tried, tried
from fullsize.files import Files
from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES
from fullsize.walk import text_of
from harness.cgroup import CgroupUnavailable
from harness.machine import wait_until_quiet
from harness.options import options
from harness.report import Report

_HERE = Path(__file__).resolve().parent
_TEXTS = _HERE / "data" / "eval"
_WALKED = 1024
"""Tokens of a generated model's text."""
_FULL = "qwen3-30b-a3b"


def bundled(name: str, budgets: tuple[str, ...]) -> Subject:
    """The bundled model with a text."""
    return Subject(name=f"bundled, {name}", model="bundled", text=_TEXTS / f"{name}.txt", budgets=budgets, context=4096)


def generated(shape: str, store: Path, folder: Path, budgets: tuple[str, ...], context: int) -> Subject:
    """A generated model with the text that its routing was made for."""
    text = folder / f"{shape}.txt"
    walk = FullSizeModel(SHAPES[shape]).walk
    text.write_text("".join(map(text_of, walk.tokens(0, _WALKED))), encoding="utf-8")
    return Subject(name=shape, model=str(store), text=text, budgets=budgets, context=context)


def subjects(given: argparse.Namespace, folder: Path, made: Path) -> list[Subject]:
    """What is run."""
    budgets: tuple[str, ...] = ("702MiB",) if given.quick else ("702MiB", "712MiB", "1GiB")
    found = [bundled(name, budgets) for name in (("prose",) if given.quick else ("prose", "code"))]
    shape = "small" if given.quick else "four-layers"
    files = Files(made, shape)
    files.make("store")
    budgets = ("640MiB",) if given.quick else ("1152MiB", "1408MiB", "1920MiB")
    found.append(generated(shape, files.store, folder, budgets, 2048))
    if given.full is not None:
        store = Files(given.full, _FULL).store
        found.append(generated(_FULL, store, folder, ("6GiB", "8GiB", "12GiB"), 4096))
    return found


def tried_all(given: argparse.Namespace) -> list[Tried]:
    """Makes what is needed, runs it in every budget, and removes it."""
    made = given.work_dir / "planner"
    rounds, tokens = (1, 32) if given.quick else (given.rounds, 128)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = subjects(given, Path(folder), made)
            return [run for subject in found for run in tried(subject, rounds=rounds, tokens=tokens)]
    except CgroupUnavailable as reason:
        raise SystemExit(f"This benchmark needs a memory cgroup (root, cgroup v1 or v2): {reason}.") from reason
    finally:
        if not given.keep:
            shutil.rmtree(made, ignore_errors=True)


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--traces", type=Path, default=_HERE / "data" / "traces", help="recordings (%(default)s)")
    parser.add_argument("--windows", type=int, default=4, help="of each recording and grade, at most (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each budget (%(default)s)")
    parser.add_argument("--full", type=Path, metavar="DIR", help=f"where fullsize_model.py has put {_FULL}'s store")
    parser.add_argument("--without-runs", action="store_true", help="only what recordings and kept results say")
    parser.add_argument("--keep", action="store_true", help="keep the generated model")
    given = parser.parse_args()
    wait_until_quiet(given.wait_quiet)
    given.work_dir.mkdir(parents=True, exist_ok=True)
    report = Report("planner", "Planned and measured", work=given.work_dir, quick=given.quick)
    found = replayed.forecasts(given.traces, windows=1 if given.quick else given.windows)
    runs = [] if given.without_runs else tried_all(given)
    if runs:
        tables.memory(report, runs)
    report.tables.append(replayed.table(found))
    tables.require_hits(report, [*found, *(tables.hits(report, runs) if runs else ())])
    if runs:
        tables.speeds(report, runs)
    tables.full_size(report, kept.kept())
    report.values["runs"] = [asdict(run) | {"subject": run.subject.name} for run in runs]
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
