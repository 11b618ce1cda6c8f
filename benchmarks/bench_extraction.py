"""How fast a checkpoint becomes a store, against copying the same bytes.

Nothing that makes a durable copy can beat the disk: every byte is read once and written once, and the directory is
made durable. ``cp --reflink=never`` followed by ``sync -f`` does just that and no more, so it is the floor.
Extraction reads the same bytes in the order of the experts, hashes them (xxh3-128, several GB/s on one core), writes
them at other places and syncs every file; it may take 1.3 times as long. Both start with cold caches; rounds
alternate, because a disk's speed drifts. What is held to 1.3 is the ``extract`` call: opening the checkpoint,
planning, copying, hashing, making durable. The whole command has the start of Python, torch and transformers on top
(about five seconds on the machine of the published figures, for a model of any size); it is printed beside the call,
and is more than 1.3 times ``cp`` for a model as small as this one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from harness.cgroup import CgroupUnavailable, run_in_cgroup, run_sampled
from harness.machine import wait_until_quiet
from harness.models import LARGE, MEDIUM, generated_checkpoint
from harness.options import options
from harness.page_cache import drop
from harness.paired import interleave
from harness.report import Report

MOST = 1.3
CALL = "of it, the extract call"
GIB = 1 << 30


class Contest:
    """Both ways of writing the bytes, each into a directory that is removed before and after.

    Args:
        checkpoint: What is copied or extracted.
        work: Where copies go; on the same disk.
    """

    def __init__(self, checkpoint: Path, work: Path) -> None:
        self.checkpoint = checkpoint
        self.copied = work / "extraction-copy"
        self.store = work / "extraction-store"
        self.peak = 0
        self.calls: list[float] = []

    def copy(self) -> float:
        """Seconds of cp and sync."""
        self._prepare()
        command = 'cp -r --reflink=never "$0" "$1" && sync -f "$1"'
        began = time.perf_counter()
        subprocess.run(["/bin/sh", "-c", command, str(self.checkpoint), str(self.copied)], check=True)
        return time.perf_counter() - began

    def extract(self) -> float:
        """Seconds of ``coterie extract``."""
        self._prepare()
        command = [sys.executable, "-m", "coterie", "extract", str(self.checkpoint), str(self.store), "--json"]
        try:
            run = run_in_cgroup(command, None)
        except CgroupUnavailable:
            run = run_sampled(command)
        if run.returncode:
            raise SystemExit(f"coterie extract failed:\n{run.stderr[-2000:]}")
        self.peak = max(self.peak, run.resident, run.high_water)
        self.calls.append(float(json.loads(run.stdout)["seconds"]))
        return run.seconds

    def clean(self) -> None:
        """Removes what was written."""
        for directory in (self.copied, self.store):
            shutil.rmtree(directory, ignore_errors=True)

    def _prepare(self) -> None:
        self.clean()
        # What the last round left to be written must not be written on this one's time.
        subprocess.run(["sync", "-f", str(self.checkpoint)], check=True)
        drop([self.checkpoint])


def main() -> int:
    """Measures and reports."""
    given = options(__doc__).parse_args()
    wait_until_quiet(given.wait_quiet)
    report = Report("extraction", "Extraction against cp", work=given.work_dir.parent, quick=given.quick)
    checkpoint = generated_checkpoint(given.work_dir, MEDIUM if given.quick else LARGE)
    nbytes = sum(file.stat().st_size for file in checkpoint.iterdir())
    contest = Contest(checkpoint, given.work_dir)
    rounds = 2 if given.quick else 5
    try:
        timings = interleave({"cp + sync -f": contest.copy, "coterie extract": contest.extract}, rounds)
    finally:
        contest.clean()
    timings.rounds[CALL] = contest.calls
    table = report.table(
        f"{nbytes / 1e9:.2f} GB, cold caches, {rounds} alternating rounds:",
        ("command", "seconds, median", "quartiles", "GB/s", "ratio to cp"),
    )
    for name in timings.rounds:
        low, high = timings.spread(name)
        median = timings.median(name)
        ratio = timings.ratio(name, "cp + sync -f")
        table.rows.append(
            (name, f"{median:.2f}", f"{low:.2f} … {high:.2f}", f"{nbytes / median / 1e9:.2f}", f"{ratio:.2f}")
        )
    ratio = timings.ratio("coterie extract", "cp + sync -f")
    call = timings.ratio(CALL, "cp + sync -f")
    report.require(f"the extract call within {MOST} × cp", f"{call:.2f}", call <= MOST)
    report.require("peak memory below 1 GiB", f"{contest.peak / 2**20:.0f} MiB", contest.peak < GIB)
    report.values.update({"ratio": ratio, "call": call, "peak": contest.peak, "rounds": timings.rounds})
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
