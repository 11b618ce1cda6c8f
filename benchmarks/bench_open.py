"""Opening a store reads no expert; and how long opening and the command line take to start.

A model's experts are most of its bytes, so whoever opens a store must not touch them: opening costs the manifest
(about 100 bytes an expert), the headers, and for ``coterie.load`` the dense weights. That no expert byte is read is
counted three ways with cold caches: by Python's audit events for opened files, by the pages of the experts' files
that are in the page cache afterwards, and by what the cache of experts says it read. What is left is Python: imports
of torch and transformers are most of ``load``'s time in a fresh process, and the reason why ``coterie --help`` must
not import them.
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from pathlib import Path

from harness.machine import wait_until_quiet
from harness.models import LARGE, MEDIUM, generated_store
from harness.options import options
from harness.page_cache import cached_bytes, drop
from harness.paired import Timings, interleave
from harness.report import Report

MOST_HELP_S = 0.5


class OpenedFiles:
    """Notes every file that Python opens while it is switched on (audit hooks cannot be removed)."""

    def __init__(self) -> None:
        self.active = False
        self.paths: list[Path] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.active and event == "open" and isinstance(arguments[0], (str, Path)):
            self.paths.append(Path(arguments[0]))


def timed(command: list[str]) -> float:
    """Seconds of a command."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def opening(store: Path) -> tuple[float, float, float, int, int, int]:
    """Cold: seconds of ``Store.open`` and of ``load``, then warm of ``load``; expert files opened, cached, read."""
    from coterie.engine import load
    from coterie.store import Store

    experts = sorted((store / "experts").rglob("*.safetensors"))
    drop([store])
    if left := sum(cached_bytes(file) for file in experts):
        raise SystemExit(f"{left} bytes of the experts' files stay in the page cache; is another program using them?")
    opened = OpenedFiles()
    opened.active = True
    began = time.perf_counter()
    Store.open(store)
    store_s = time.perf_counter() - began
    began = time.perf_counter()
    model = load(store, memory="8GiB")
    cold_s = time.perf_counter() - began
    opened.active = False
    touched = sum("experts" in path.parts and path.is_relative_to(store) for path in opened.paths)
    cached = sum(cached_bytes(file) for file in experts)
    read = model.coterie.cache.stats().bytes_read
    model.coterie.close()
    began = time.perf_counter()
    load(store, memory="8GiB").coterie.close()
    return store_s, cold_s, time.perf_counter() - began, touched, cached, read


def main() -> int:
    """Measures and reports."""
    given = options(__doc__).parse_args()
    warnings.filterwarnings("ignore", "The experts have")
    wait_until_quiet(given.wait_quiet)
    report = Report("open", "Opening a store, starting the command line", work=given.work_dir.parent, quick=given.quick)
    dimensions = MEDIUM if given.quick else LARGE
    store = generated_store(given.work_dir, dimensions).resolve()
    starting: Timings = interleave(
        {
            "python -c pass": lambda: timed([sys.executable, "-c", "pass"]),
            "coterie --help": lambda: timed([str(Path(sys.executable).parent / "coterie"), "--help"]),
            "import coterie, torch, transformers": lambda: timed(
                [sys.executable, "-c", "import coterie.engine, torch, transformers"]
            ),
        },
        rounds=3 if given.quick else 15,
    )
    started = report.table("Starting, warm caches:", ("command", "seconds, median", "quartiles"))
    for name in starting.rounds:
        low, high = starting.spread(name)
        started.rows.append((name, f"{starting.median(name):.3f}", f"{low:.3f} … {high:.3f}"))
    store_s, cold_s, warm_s, touched, cached, read = opening(store)
    opened = report.table(
        f"Opening a store with {dimensions.experts_nbytes / 1e9:.2f} GB of experts, imports done:",
        ("step", "seconds"),
    )
    opened.rows += [
        ("Store.open, cold cache", f"{store_s:.3f}"),
        ("coterie.load, cold cache", f"{cold_s:.3f}"),
        ("coterie.load, warm cache", f"{warm_s:.3f}"),
    ]
    report.require(
        "no expert byte read",
        f"{touched} expert files opened for reading, {cached} of their bytes in the page cache, {read} read",
        cached == 0 and read == 0,
    )
    help_s = starting.median("coterie --help")
    report.require(f"coterie --help under {MOST_HELP_S} s", f"{help_s:.2f} s", help_s < MOST_HELP_S)
    report.values.update({"starting": starting.rounds, "store": store_s, "cold": cold_s, "warm": warm_s})
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
