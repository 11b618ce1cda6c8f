"""A store on the Hub, opened with --missing fetch: what comes before the first token, and what a second run fetches.

What is outside experts is needed whole; of experts, those that the routers choose for the prompt. A token of a model
with 128 experts in each of 48 layers, 8 at a time, chooses 384 of 6,144, so a first token needs a small part of a
store, and a prompt of a hundred tokens most of it. The store is that of fullsize_model.py in int4. It is served on this
machine at 1 Gbit/s, all connections together; the cache of the Hub is empty at first. Beside it: the same command
without the option, which downloads the whole store first, is not run; how long it would take at least is the store's
bytes at that rate.

    python benchmarks/bench_hub.py --work-dir DIR
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES
from fullsize.walk import text_of
from harness.hub_server import HubServer
from harness.machine import wait_until_quiet
from harness.options import options
from harness.report import Report

REPO = "someone/store"
SHAPE = "qwen3-30b-a3b"
RATE = 125e6
TOKENS = (1, 8)
"""Of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the command.

    Attributes:
        first_s: Seconds from the start of the process to the first text.
        before: Bytes of files that had been sent by then.
        sent: Bytes of files that were sent in all.
        experts: Bytes of them that were of experts.
        fetched: Experts that it says it has fetched.
    """

    first_s: float
    before: int
    sent: int
    experts: int
    fetched: int


def run(hub: HubServer, home: Path, prompt: str) -> Run:
    """Generates four tokens."""
    hub.sent.clear()
    stats = home / "stats.json"
    command = [sys.executable, "-m", "coterie", "generate", REPO, prompt, "--raw", "--greedy", "-n", "4"]
    command += ["--missing", "fetch", "--memory", "8GiB", "--stats", str(stats)]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        first_s, before = time.perf_counter() - began, hub.total
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    experts = sum(sent for name, sent in hub.sent.items() if name.startswith("experts/"))
    fetched = json.loads(stats.read_text(encoding="utf-8"))["fetched"]["experts"]
    return Run(first_s=first_s, before=before, sent=hub.total, experts=experts, fetched=fetched)


def main() -> int:
    """Measures and reports."""
    given = options(__doc__).parse_args()
    wait_until_quiet(given.wait_quiet)
    store = given.work_dir / f"{SHAPE}-store"
    if not (store / "coterie.json").is_file():
        raise SystemExit(f"There is no store {store}: run fullsize_model.py --shape {SHAPE} --store.")
    nbytes = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    walk = FullSizeModel(SHAPES[SHAPE]).walk
    report = Report("hub", "The first token of a store on the Hub", work=given.work_dir, quick=given.quick)
    table = report.table(
        f"Store of {nbytes / 1e9:.1f} GB, served at {RATE / 1e6:.0f} MB/s; the whole store would take "
        f"{nbytes / RATE:.0f} s. Four tokens are generated.",
        ("prompt, tokens", "run", "first token, s", "sent before it, GB", "of the store", "sent in all, GB", "experts"),
    )
    # Rows of one prompt belong together; the cache of each begins empty.
    with HubServer(REPO, store, bytes_per_second=RATE) as hub:
        for tokens in TOKENS[: 1 if given.quick else None]:
            with tempfile.TemporaryDirectory(dir=given.work_dir) as home:
                for number in (1, 2):
                    one = run(hub, Path(home), "".join(map(text_of, walk.tokens(0, tokens))))
                    share = one.before / nbytes
                    table.rows.append(
                        (
                            str(tokens),
                            "first" if number == 1 else "second",
                            f"{one.first_s:.1f}",
                            f"{one.before / 1e9:.2f}",
                            f"{100 * share:.1f} %",
                            f"{one.sent / 1e9:.2f}",
                            f"{one.fetched:,}",
                        )
                    )
                    if tokens == TOKENS[0] and number == 1:
                        report.require("first token before a fifth of the store", f"{100 * share:.1f} %", share < 0.2)
                    if number == 2:
                        what = f"second run, prompt of {tokens}: no byte of tensors"
                        tensors = sum(sent for name, sent in hub.sent.items() if name.endswith(".safetensors"))
                        report.require(what, f"{tensors:,} bytes", tensors == 0)
    return report.finish()


if __name__ == "__main__":
    raise SystemExit(main())
