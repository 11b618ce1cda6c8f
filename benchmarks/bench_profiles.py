"""What recording profiles costs, and how fast a profile of ten million activations answers.

Recording adds to counters on the model's thread. A decode step of the shape of Qwen3-30B-A3B calls 48 times with one
token and 8 experts each: the arrays are tiny, so a call costs what numpy's calls cost, some microseconds, and no
memory traffic to speak of. A prompt adds thousands of tokens at once, and costs what counting costs: for each token,
layer and expert one increment of three counters, and of 28 pairs. The database is another thread's business.

A question reads the counters (packed arrays: per segment, layer and group some kilobytes) and is then arithmetic on
6,144 experts × at most 32 blocks. Reading is the larger part; a profile that is kept in memory answers in the rest.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.machine import wait_until_quiet
from harness.options import options
from harness.report import Report

LAYERS, EXPERTS, TOP_K = 48, 128, 8
ACTIVATIONS = 10_000_000
DOCUMENT = 128
DOMAINS = ("code", "law", "prose", "science")
MOST_DECODE_MS = 5.0
"""5 % of a decode step of 100 ms."""
MOST_QUERY_S = 1.0


def peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_facts(layers: int) -> Any:
    from coterie.profiles import BankShape, RunFacts
    from coterie.spec import BankKey

    banks = tuple(BankShape(bank=BankKey("text", n, "mlp"), experts=EXPERTS, top_k=TOP_K) for n in range(layers))
    return RunFacts(
        identity="0" * 32, model="benchmark", model_class="Qwen3MoeForCausalLM", tool_version="0", banks=banks
    )


def routed(rng: np.random.Generator, tokens: int) -> tuple[Any, Any]:
    """Ids and gate weights [T, K] of a router with a few favourites per document."""
    scores = rng.gumbel(size=(tokens, EXPERTS)).astype(np.float32) + rng.normal(size=EXPERTS).astype(np.float32)
    ids = np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K].astype(np.uint16)
    weights = rng.random((tokens, TOP_K), dtype=np.float32)
    return ids, weights / weights.sum(axis=1, keepdims=True)


def record(report: Report, path: Path, layers: int, activations: int) -> None:
    """Records so many activations, document by document, and measures what the model's thread waits."""
    from coterie.profiles import ProfileDatabase, Recording

    run = run_facts(layers)
    rng = np.random.default_rng(0)
    documents = activations // (layers * TOP_K * DOCUMENT) + 1
    variants = [routed(rng, DOCUMENT) for _ in range(64)]
    before = peak_mib()
    prompt_s, decode_s = [], []
    with ProfileDatabase(path, create=True) as database:
        began = time.perf_counter()
        with Recording(database, run) as recording:
            groups = [recording.group("text", name, "prompt") for name in DOMAINS]
            for document in range(documents):
                group = groups[document * len(DOMAINS) // documents]
                token_ids = rng.zipf(1.3, DOCUMENT) % 150_000
                start = time.perf_counter()
                for place, shape in enumerate(run.banks):
                    ids, weights = variants[(document * 7 + place) % 64]
                    recording.add(shape.bank, ids, weights, weights, group, token_ids)
                recording.mark(str(document), 1, done=True)
                prompt_s.append((time.perf_counter() - start) / DOCUMENT)
            generated = recording.group("text", DOMAINS[0], "generated")
            for token in range(1024):
                start = time.perf_counter()
                recording.boundary()
                for place, shape in enumerate(run.banks):
                    ids, weights = variants[place % 64]
                    row = slice(token % DOCUMENT, token % DOCUMENT + 1)
                    recording.add(shape.bank, ids[row], weights[row], weights[row], generated, 7)
                decode_s.append(time.perf_counter() - start)
            held = recording.nbytes
        whole_s = time.perf_counter() - began
    table = report.table(
        f"Recording {documents * DOCUMENT * layers * TOP_K:,} activations of prompts, then 1,024 tokens one by one; "
        f"{layers} layers × {EXPERTS} experts, top {TOP_K}, pairs and 64 tokens per expert counted:",
        ("figure", "value"),
    )
    decode_ms = 1e3 * statistics.fmean(decode_s)
    table.rows += [
        ("decoding: ms per token, mean", f"{decode_ms:.2f}"),
        ("decoding: ms per token, median", f"{1e3 * statistics.median(decode_s):.2f}"),
        ("decoding: ms of the slowest token, which counts a buffer", f"{1e3 * max(decode_s):.1f}"),
        ("prompts: µs per token, mean", f"{1e6 * statistics.fmean(prompt_s):.0f}"),
        ("prompts: activations per second", f"{layers * TOP_K / statistics.fmean(prompt_s):,.0f}"),
        ("until all is in the database, s", f"{whole_s:.1f}"),
        ("counters and buffers, MiB", f"{held / 2**20:.1f}"),
        ("peak memory more than before, MiB", f"{peak_mib() - before:.0f}"),
        ("size of the file, MiB", f"{path.stat().st_size / 2**20:.1f}"),
    ]
    report.require(
        f"recording a decoded token: under {MOST_DECODE_MS:.0f} ms (5 % of 100 ms)",
        f"{decode_ms:.2f} ms",
        decode_ms < MOST_DECODE_MS,
    )
    report.values["recording"] = {"decode_ms": decode_ms, "prompt_us": 1e6 * statistics.fmean(prompt_s), "bytes": held}


def ask(report: Report, path: Path, rounds: int) -> None:
    """Asks every question, from opening the file to the answer."""
    from coterie.profiles import (
        Profile,
        ProfileDatabase,
        compare_domains,
        expert_card,
        expert_kinds,
        rank_experts,
        share_profile,
        spare_experts,
    )

    questions: dict[str, Callable[[Any, Any], object]] = {
        "reading alone": lambda profile, database: None,
        "experts of a domain, ranked": lambda profile, database: rank_experts(profile, domain="code"),
        "what distinguishes two domains": lambda profile, database: compare_domains(profile, "code", "law"),
        "universal and specialised experts": lambda profile, database: expert_kinds(profile),
        "what a domain can do without": lambda profile, database: spare_experts(profile, domain="code", share=0.25),
        "one expert": lambda profile, database: expert_card(profile, database, 7, 5),
        "export of everything": lambda profile, database: share_profile(profile, database),
    }
    table = report.table(
        "Questions, from opening the file to the answer:", ("question", "s, median", "of which not reading")
    )
    taken: dict[str, tuple[float, float]] = {}
    for name, question in questions.items():
        whole, answering = [], []
        for _ in range(rounds):
            start = time.perf_counter()
            with ProfileDatabase(path) as database:
                profile = Profile.read(database)
                read = time.perf_counter()
                question(profile, database)
                end = time.perf_counter()
            whole.append(end - start)
            answering.append(end - read)
        taken[name] = statistics.median(whole), statistics.median(answering)
        table.rows.append((name, f"{taken[name][0]:.3f}", f"{taken[name][1]:.3f}"))
    slowest = max((name for name in questions if not name.startswith("export")), key=lambda name: taken[name][0])
    report.require(
        f"every question but the export: under {MOST_QUERY_S:.0f} s",
        f"{taken[slowest][0]:.2f} s ({slowest})",
        taken[slowest][0] < MOST_QUERY_S,
    )
    report.values["questions"] = taken


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    given = parser.parse_args()
    wait_until_quiet(given.wait_quiet)
    given.work_dir.mkdir(parents=True, exist_ok=True)
    path = given.work_dir / "profile.db"
    for leftover in given.work_dir.glob("profile.db*"):
        leftover.unlink()
    report = Report("profiles", "Profiles: recording and questions", work=given.work_dir.parent, quick=given.quick)
    record(report, path, 8 if given.quick else LAYERS, ACTIVATIONS // 20 if given.quick else ACTIVATIONS)
    ask(report, path, 3 if given.quick else 7)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
