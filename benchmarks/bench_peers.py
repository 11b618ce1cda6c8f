"""Coterie beside llama.cpp, stock transformers and accelerate, on a model of Qwen3-30B-A3B's size and the same weights.

The model is generated (``fullsize_model.py``): four-bit experts with the routing statistics of the real one, the very
same values in a store and in a GGUF file, and a text that every engine must reproduce token by token. Engines run as
processes of their own in memory cgroups, from an empty page cache, with the same prompt and greedy decoding, in turn,
round by round; a ratio is the median over rounds of the ratio within one round.

The physics: a token takes 8 experts of each of 48 layers, 1.02 GB. In memory that is read at the speed of memory, and
with the dense weights it bounds decoding. What is not in memory comes from the disk: misses × 2.65 MB ÷ bandwidth,
which is printed with the hit rates that the routing allows. llama.cpp maps its file, so the kernel's page cache is its
expert cache and page faults are its reads; it must keep its 17 GB in memory to use its fastest kernels (*repacked*).
accelerate and stock transformers read bfloat16 alone, 61 GB for this model: they get one of four such layers.

What one run takes in all is in each table: bytes read, memory of the process, peak of the cgroup (page cache included),
processes killed. Decode speed is by the arrival of tokens after the first sixteen; prefill is what the engine itself
says, without opening the model. Times to first token begin before the process exists.

An interrupted benchmark goes on with ``--resume``; ``--quick`` uses a model of 50 MB to see that all of it works.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fullsize.as_checkpoint import write_as_checkpoint
from fullsize.as_gguf import write_as_gguf
from fullsize.as_store import write_as_store
from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES
from fullsize_model import Files
from harness.cgroup import CgroupUnavailable
from harness.machine import wait_until_quiet
from harness.options import options
from harness.raw_disk import raw_bandwidth
from harness.report import Report
from peers.case import Case
from peers.contest import Contest
from peers.engines import Coterie, Engine, LlamaCpp, Transformers, measure
from peers.ideal import ideal_step
from peers.llama_build import build_llama
from peers.packages import installed
from peers.routing import routing_table
from peers.tables import Requirement, case_table, require_budgets, require_ratios

GIB = 1 << 30
MIB = 1 << 20
MMAP, REPACKED, OURS = "llama.cpp mmap", "llama.cpp repacked", "coterie"
STOCK = ("transformers", "accelerate disk offload")
DEPTHS = (1, 2, 4, 8)
LONGEST_OVER_IDEAL = 1.3


@dataclass(frozen=True)
class Sizes:
    """How large a run of the benchmark is.

    Attributes:
        shape: The model.
        limits: Memory cgroups, bytes.
        prefill_limits: Those in which long prompts are measured, too.
        prompt: Tokens of the short prompt.
        long_prompt: Tokens of the long one.
        settle: Decode steps before measuring begins.
        decode: Measured decode steps.
        trace: Decode steps of the recorded routing.
        stock_shape: The model that peers get which read bfloat16 alone.
        stock_limit: Their memory cgroup.
    """

    shape: str
    limits: tuple[int, ...]
    prefill_limits: tuple[int, ...]
    prompt: int
    long_prompt: int
    settle: int
    decode: int
    trace: int
    stock_shape: str
    stock_limit: int


FULL = Sizes(
    shape="qwen3-30b-a3b",
    limits=(6 * GIB, 8 * GIB, 12 * GIB),
    prefill_limits=(8 * GIB,),
    prompt=32,
    long_prompt=512,
    settle=16,
    decode=48,
    trace=512,
    stock_shape="four-layers",
    stock_limit=4 * GIB,
)
QUICK = Sizes(
    shape="small",
    limits=(768 * MIB,),
    prefill_limits=(768 * MIB,),
    prompt=32,
    long_prompt=64,
    settle=4,
    decode=12,
    trace=64,
    stock_shape="small",
    stock_limit=GIB,
)


def size_name(nbytes: int) -> str:
    """``8 GiB``."""
    return f"{nbytes / GIB:g} GiB" if nbytes % GIB == 0 else f"{nbytes / MIB:.0f} MiB"


def requirements(sizes: Sizes) -> list[Requirement]:
    """What is asked of full-size runs; quick runs show the same rows, of the limits that they have."""
    best = (MMAP, REPACKED)
    wanted = [
        Requirement(f"start in {size_name(8 * GIB)}", "decode", (MMAP,), 8.0),
        Requirement(f"start in {size_name(12 * GIB)}", "decode", (MMAP,), 2.5),
        Requirement("in memory", "decode", best, 1.0),
        Requirement("in memory", "prefill", best, 1.5),
        Requirement(f"long prompt in {size_name(8 * GIB)}", "prefill", (MMAP,), 3.0),
        Requirement(f"start in {size_name(8 * GIB)}", "first token", (MMAP,), 1.5),
    ]
    if sizes is QUICK:
        limit = size_name(sizes.limits[0])
        wanted += [Requirement(f"start in {limit}", metric, (MMAP,), 1.0) for metric in ("decode", "first token")]
    return wanted


def contest_cases(sizes: Sizes, timeout_s: float) -> list[tuple[Case, bool]]:
    """The cases, and whether a peer that holds all of the model in memory takes part."""
    short = {
        "prompt_tokens": sizes.prompt,
        "new_tokens": 1 + sizes.settle + sizes.decode,
        "settle_tokens": sizes.settle,
    }
    cases = []
    for limit in sizes.limits:
        cases.append((Case(name=f"start in {size_name(limit)}", limit=limit, timeout_s=timeout_s, **short), False))
    for limit in sizes.prefill_limits:
        name = f"long prompt in {size_name(limit)}"
        case = Case(
            name=name, limit=limit, prompt_tokens=sizes.long_prompt, new_tokens=2, settle_tokens=0, timeout_s=timeout_s
        )
        cases.append((case, False))
    cases.append((Case(name="start without limit", limit=None, timeout_s=timeout_s, **short), True))
    warm = short | {"prompt_tokens": sizes.long_prompt, "warm": True}
    cases.append((Case(name="in memory", limit=None, timeout_s=timeout_s, **warm), True))
    return cases


def roomy_case(sizes: Sizes, timeout_s: float) -> tuple[str, Case]:
    """The case that is repeated with 1 GiB more to live in, and its repetition."""
    limit = 8 * GIB if 8 * GIB in sizes.limits else sizes.limits[0]
    case = next(one for one, _ in contest_cases(sizes, timeout_s) if one.limit == limit)
    return case.name, Case(
        name=f"{case.name}, 1 GiB more to live in",
        limit=limit + GIB,
        budget=limit,
        prompt_tokens=case.prompt_tokens,
        new_tokens=case.new_tokens,
        settle_tokens=case.settle_tokens,
        timeout_s=timeout_s,
    )


def bandwidths(report: Report, store: Path, read_nbytes: int, quick: bool) -> float:
    """Measures the disk at several depths; returns the best bytes per second."""
    file = max(store.rglob("*.safetensors"), key=lambda path: path.stat().st_size if "experts" in path.parts else 0)
    rounds = 1 if quick else 3
    seconds = 0.2 if quick else 1.0
    taken: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for number in range(rounds):
        for depth in DEPTHS:
            taken[depth].append(raw_bandwidth(file, read_nbytes, depth=depth, seconds=seconds, seed=number))
    table = report.table(
        f"The disk: direct reads of {read_nbytes / MIB:.2f} MiB at random places, medians of {rounds} rounds:",
        ("at once", "GB/s"),
    )
    best = 0.0
    for depth, values in taken.items():
        table.rows.append((str(depth), f"{statistics.median(values) / 1e9:.2f}"))
        best = max(best, statistics.median(values))
    report.values["disk"] = {str(depth): values for depth, values in taken.items()}
    return best


def analyse(
    report: Report, contest: Contest, sizes: Sizes, ours: Coterie, work: Path, timeout_s: float, quick: bool
) -> None:
    """Where our time goes: routing, and decode steps against the ideal at the disk's bandwidth."""
    trace = work / f"{sizes.shape}-routing.npz"
    watched = Coterie(ours.store, ours.threads, name="coterie, watched", analysis=trace)
    warm = Case(
        name="routing", limit=None, warm=True, prompt_tokens=sizes.prompt, new_tokens=sizes.trace + 1, settle_tokens=0,
        timeout_s=timeout_s,
    )  # fmt: skip
    outcome = measure(watched, warm, contest.model)
    if outcome.failure:
        print(f"The routing cannot be recorded: {outcome.failure}", file=sys.stderr)
        return
    routing_table(report, trace)
    parts = outcome.own["parts"]
    assert isinstance(parts, dict)
    d = contest.model.dimensions
    expert_s = parts["experts"] / (d.layers * d.top_k)
    rest_s = sum(seconds for part, seconds in parts.items() if part not in ("experts", "waiting"))
    expert_bytes = int(str(outcome.own["expert_bytes"]))
    bandwidth = bandwidths(report, ours.store, expert_bytes, quick)
    table = report.table(
        f"Decode steps against the ideal, ms: dense and all else {1e3 * rest_s:.1f}, an expert {1e3 * expert_s:.3f}, "
        f"{bandwidth / 1e9:.2f} GB/s; reads hidden within their layer, and within the whole step:",
        ("case", "misses per token", "measured", "ideal by layer", "ratio", "ideal of full overlap"),
    )
    for limit in sizes.limits:
        case = next(one for one, _ in contest_cases(sizes, timeout_s) if one.limit == limit)
        found = measure(
            Coterie(ours.store, ours.threads, name="watched", analysis=work / ".served.npz"), case, contest.model
        )
        timed = [step for one in contest.of(case.name, ours.name) for step in one.steps_s]
        served = found.own.get("served")
        if not isinstance(served, list) or not timed or found.failure:
            continue
        steps = served[sizes.settle : sizes.settle + sizes.decode]
        ideal = ideal_step(steps, rest_s=rest_s, expert_s=expert_s, expert_bytes=expert_bytes, bandwidth=bandwidth)
        measured = statistics.mean(timed)
        misses = statistics.mean(sum(missed for _, missed in step) for step in steps)
        ratio = measured / ideal.layered
        table.rows.append(
            (
                case.name,
                f"{misses:.1f}",
                f"{1e3 * measured:.1f}",
                f"{1e3 * ideal.layered:.1f}",
                f"{ratio:.2f}",
                f"{1e3 * ideal.foreseen:.1f}",
            )
        )
        report.require(
            f"time per token against the ideal by layer, {case.name}: at most {LONGEST_OVER_IDEAL}",
            f"{ratio:.2f}",
            ratio <= LONGEST_OVER_IDEAL,
        )


def stock_contest(report: Report, sizes: Sizes, given: argparse.Namespace, rounds: int) -> None:
    """The peers that read bfloat16 alone, on a model that their checkpoint can be made of here."""
    model = FullSizeModel(SHAPES[sizes.stock_shape])
    files = Files(given.work_dir, sizes.stock_shape)
    write_as_store(files.store, model, sizes.stock_shape)
    write_as_checkpoint(files.checkpoint, model)
    packages = installed(given.work_dir, "accelerate", "accelerate")
    contest = Contest(model, _journal(given, f"{sizes.stock_shape}-stock"))
    limited = Case(
        name=f"four layers in {size_name(sizes.stock_limit)}", limit=sizes.stock_limit, prompt_tokens=sizes.prompt,
        new_tokens=9, settle_tokens=2, timeout_s=given.timeout,
    )  # fmt: skip
    free = Case(
        name="four layers without limit", limit=None, prompt_tokens=sizes.prompt, new_tokens=17, settle_tokens=4,
        timeout_s=given.timeout,
    )  # fmt: skip
    ours = Coterie(files.store, given.threads)
    offloaded = Transformers(files.checkpoint, given.threads, given.work_dir / "offload", packages)
    for number in range(rounds):
        contest.run(limited, [ours, offloaded], number)
        contest.run(free, [ours, Transformers(files.checkpoint, given.threads)], number)
    for case in (limited, free):
        caption = (
            f"{_title(case)}, Coterie with int4 experts, the others with the same weights in "
            f"bfloat16; prompt {case.prompt_tokens} tokens, {rounds} rounds:"
        )
        case_table(report, contest, case.name, ("first token", "decode"), caption)
    report.values["stock outcomes"] = [asdict(one) for one in contest.outcomes.values()]


def prepare(sizes: Sizes, given: argparse.Namespace) -> tuple[FullSizeModel, list[Engine], list[Engine]]:
    """The model's files and llama.cpp; returns the model, and the engines for limited memory and without a limit."""
    model = FullSizeModel(SHAPES[sizes.shape])
    files = Files(given.work_dir, sizes.shape)
    write_as_gguf(files.gguf, model, sizes.shape)
    write_as_store(files.store, model, sizes.shape)
    llama = build_llama(given.work_dir, source=given.llama_source, build=given.llama_build)
    given.llama_version = llama.version
    ours = Coterie(files.store, given.threads)
    mapped = LlamaCpp(llama.completion, files.gguf, given.threads, repacked=False)
    repacked = LlamaCpp(llama.completion, files.gguf, given.threads, repacked=True)
    return model, [ours, mapped], [ours, mapped, repacked]


def publish_contest(
    report: Report, contest: Contest, sizes: Sizes, cases: Sequence[Case], given: argparse.Namespace
) -> None:
    """Tables and requirements."""
    for case in cases:
        if not contest.engines(case.name):
            continue
        long = case.new_tokens > 2
        measured = (
            f", {case.new_tokens - case.settle_tokens - 1} tokens measured after {case.settle_tokens}" if long else ""
        )
        caption = f"{_title(case)}: prompt of {case.prompt_tokens} tokens{measured}, {given.rounds} rounds:"
        case_table(
            report,
            contest,
            case.name,
            ("first token", "prefill", "decode") if long else ("first token", "prefill"),
            caption,
        )
    require_ratios(report, contest, requirements(sizes), OURS)
    budgets = {case.name: case.memory for case in cases if case.memory is not None}
    tight, roomy = roomy_case(sizes, given.timeout)
    require_budgets(report, contest, budgets, OURS, {tight: roomy.name})
    report.values["outcomes"] = [{"round": key[0], **asdict(one)} for key, one in contest.outcomes.items()]
    report.values["llama.cpp"] = given.llama_version


def _title(case: Case) -> str:
    return case.name[0].upper() + case.name[1:]


def _journal(given: argparse.Namespace, name: str) -> Path:
    journal: Path = given.work_dir / f"peers-{name}.jsonl"
    if not given.resume:
        journal.unlink(missing_ok=True)
    return journal


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", choices=SHAPES, help="another model")
    parser.add_argument("--limits", type=float, nargs="+", metavar="GIB", help="other memory cgroups")
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="only cases whose name contains one of these")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for one run (%(default)g)")
    parser.add_argument("--resume", action="store_true", help="keep the runs that an interrupted benchmark has made")
    parser.add_argument("--no-stock", action="store_true", help="leave out transformers and accelerate")
    parser.add_argument("--no-analysis", action="store_true", help="leave out routing and the ideal")
    parser.add_argument("--llama-source", type=Path, help="a source tree of llama.cpp to use")
    parser.add_argument("--llama-build", type=Path, help="a build directory of llama.cpp to use, or to build in")
    given = parser.parse_args()
    # Killed politely, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))
    sizes = QUICK if given.quick else FULL
    changes: dict[str, object] = {"shape": given.shape} if given.shape else {}
    if given.limits:
        limits = tuple(int(limit * GIB) for limit in given.limits)
        changes |= {"limits": limits, "prefill_limits": limits}
    if changes:
        sizes = Sizes(**{**asdict(sizes), **changes})
    given.work_dir.mkdir(parents=True, exist_ok=True)
    model, limited, free = prepare(sizes, given)
    wait_until_quiet(given.wait_quiet)
    report = Report("peers", "Coterie beside its peers", work=given.work_dir, quick=given.quick)
    contest = Contest(model, _journal(given, sizes.shape))
    cases = contest_cases(sizes, given.timeout)
    chosen = [
        (case, whole) for case, whole in cases if not given.cases or any(text in case.name for text in given.cases)
    ]
    tight, roomy = roomy_case(sizes, given.timeout)
    try:
        for number in range(given.rounds):
            for case, whole in chosen:
                contest.run(case, free if whole else limited, number)
                if case.name == tight:
                    contest.run(roomy, limited[:1], number)
        publish_contest(report, contest, sizes, [*(case for case, _ in chosen), roomy], given)
        if not given.no_analysis:
            ours = limited[0]
            assert isinstance(ours, Coterie)
            analyse(report, contest, sizes, ours, given.work_dir, given.timeout, given.quick)
        if not given.no_stock:
            stock_contest(report, sizes, given, 1)
    except CgroupUnavailable as reason:
        raise SystemExit(f"This benchmark needs a memory cgroup (root, cgroup v1 or v2): {reason}.") from reason
    except PermissionError as reason:
        raise SystemExit(f"This benchmark empties the page cache, which takes root: {reason}.") from reason
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
