"""What a speed takes: the rule of docs/speed.md, for the model that was measured. Nothing is measured here.

    python benchmarks/speed_rule.py

A token takes the time of a token with all experts in memory, and the time to read the experts that it misses:

    seconds per token = seconds in memory + (1 - hit rate) * working set / speed of the disk

The first term is what bench_peers.py measured (decode, in memory). The working set is layers * experts per token *
bytes of a four-bit record. Hit rates are those of the default eviction policy on routing that was recorded from
Qwen3-30B-A3B, as bench_peers.py found them. The memory limit is what model_sizes.py computes, less the experts that do
not fit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from coterie.spec.encodings import SCHEME_FORMATS
from harness.report import RESULTS, Table
from model_sizes import MODELS, gib, measured, sizes

NAME = "Qwen/Qwen3-30B-A3B"
DISKS = (0.5, 1.0, 2.0, 4.0)
"""10⁹ bytes per second."""
SHARES = (0.125, 0.25, 0.5)
"""Of the experts, that are in memory; those of bench_peers.py."""
TARGET = 5.0
"""Tokens per second."""
PAGE = 4096
"""Records are aligned to as many bytes."""


def record_nbytes(hidden: int, intermediate: int) -> int:
    """Bytes of a SwiGLU expert in int4."""
    scheme = SCHEME_FORMATS["int4"]
    nbytes = scheme.nbytes(2 * intermediate, hidden) + scheme.nbytes(hidden, intermediate)
    return -(-nbytes // PAGE) * PAGE


def main() -> int:
    """Prints the table and writes it for publish.py."""
    model = next(model for model in MODELS if model.name == NAME)
    shape = model.shape
    record = record_nbytes(shape["hidden_size"], shape["moe_intermediate_size"])
    experts = shape["num_hidden_layers"] * shape["num_experts"] * record
    working_set = shape["num_hidden_layers"] * shape["num_experts_per_tok"] * record
    speed = float(measured(model.speed).rpartition("… ")[2].partition(" ")[0])
    in_memory = 1 / speed
    peers = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))["values"]
    rates = peers["hit rates, Qwen3-30B-A3B, markov, all layers"]
    with tempfile.TemporaryDirectory() as folder:
        limit = sizes(model, Path(folder)).all_experts
    limits = [limit - round((1 - share) * experts) for share in SHARES]
    headings = [
        f"{gib(nbytes)}: {share:.1%} of the experts, hit rate {rate:.0%}"
        for nbytes, share, rate in zip(limits, SHARES, rates, strict=True)
    ]
    table = Table(
        f"{NAME} in four bits, whose working set is {working_set / 2**20:.0f} MiB. With all experts in memory a token "
        f"takes {1000 * in_memory:.0f} ms on the machine that was measured, which has 2 cores:",
        ("random reads", f"hit rate for {TARGET:.0f} tok/s", *headings),
    )
    for disk in DISKS:
        missed = (1 / TARGET - in_memory) * disk * 1e9 / working_set
        expected = [1 / (in_memory + (1 - rate) * working_set / (disk * 1e9)) for rate in rates]
        table.rows.append((f"{disk:g} GB/s", f"{1 - missed:.0%}", *(f"{value:.1f} tok/s" for value in expected)))
    text = table.markdown()
    print(text)
    (RESULTS / "speed_rule.md").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
