"""Extraction takes as much memory as a few experts do, however large the model is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

MEASURE = """
import sys, threading
from coterie.checkpoint import Checkpoint
from coterie.extraction import extract

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

Checkpoint.open(sys.argv[1])  # imports, which are not what is measured
peak = before = anonymous()
done = threading.Event()

def sample():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous())

sampler = threading.Thread(target=sample)
sampler.start()
report = extract(sys.argv[1], sys.argv[2])
done.set()
sampler.join()
print(before, peak, report.written_nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_a_few_experts(tmp_path: Path) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    from synthetic import Dimensions, write_checkpoint

    # 12 MB an expert, 300 MB in all; one dense tensor of 33 MB.
    shape = Dimensions(layers=2, experts=12, hidden=1024, expert_hidden=2048, heads=8, vocabulary=16384)
    source = write_checkpoint(tmp_path / "source", shape)
    command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "store")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, peak, written = map(int, out.split())
    shutil.rmtree(tmp_path)
    assert written > 300e6
    assert peak < 2**30
    # Six workers with a record and what it is read into each, and pieces of dense tensors.
    assert peak - before < 6 * 2 * shape.expert_nbytes + 40 * 2**20
