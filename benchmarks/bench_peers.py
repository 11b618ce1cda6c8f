"""Coterie beside BigMoeOnEdge, llama.cpp, transformers and accelerate, on a model of Qwen3-30B-A3B's size.

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

With ``--drop-cold TAU`` Coterie takes part in limited memory once more, leaving out light experts that are not in it.
The text must be the same: whatever experts add, this model's next token is clear.

BigMoeOnEdge, the strongest engine that streams experts, and llama.cpp's server generate whole answers beside Coterie
(:mod:`peers.streaming`), which is a report of its own. BigMoeOnEdge takes part where ``--big-moe`` names its program.
The ceiling is full overlap: a token takes as long as its reads or as its arithmetic, whichever is longer, at the speed
that both have while the other goes on.

An interrupted benchmark goes on with ``--resume``; ``--quick`` uses a model of 50 MB to see that all of it works.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from fullsize.files import Files
from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES, gguf_nbytes, store_nbytes
from harness.cgroup import CgroupUnavailable
from harness.journal import Journal
from harness.machine import wait_until_quiet
from harness.options import options
from harness.page_cache import cached_bytes, drop_everything
from harness.report import Report
from harness.trees import checked_out
from peers.analysis import publish_beside_ideal, record_routing, run_beside_ideal
from peers.big_moe import big_moe_engines, big_moe_program, version_of
from peers.case import Case
from peers.contest import Contest
from peers.engines import Coterie, Engine, LlamaCpp, LlamaOverHttp, Transformers
from peers.llama_build import build_llama
from peers.packages import installed
from peers.sizes import FULL, GIB, OURS, QUICK, Sizes, contest_cases, requirements, size_name
from peers.streaming import BEFORE, Contestants, publish_streaming, run_streaming, strongest
from peers.tables import case_table, require_budgets, require_ratios, summarise

PARTS = ("contest", "analysis", "stock", "streaming")


def stock_contest(report: Report, sizes: Sizes, given: argparse.Namespace, rounds: int) -> None:
    """The peers that read bfloat16 alone, on a model that their checkpoint can be made of here."""
    model = FullSizeModel(SHAPES[sizes.stock_shape])
    files = Files(given.work_dir, sizes.stock_shape)
    files.make("store", "checkpoint")
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


def streaming_contest(sizes: Sizes, given: argparse.Namespace, who: Contestants, model: FullSizeModel) -> Contest:
    """Runs the engines that read experts while they decode."""
    contest = Contest(model, _journal(given, f"{sizes.shape}-streaming"))
    run_streaming(contest, sizes, who, given.streaming_rounds, given.timeout, given.server_timeout)
    return contest


def publish_streaming_contest(streaming: Contest, contest: Contest, sizes: Sizes, given: argparse.Namespace) -> Report:
    """The report of its own, and the summary for the front page where the strongest peer has taken part."""
    title = "Coterie beside engines that stream experts"
    report = Report("peers_streaming", title, work=given.work_dir, quick=given.quick, summary_name="peers_summary")
    publish_streaming(report, streaming, sizes)
    if wanted := strongest(streaming, sizes):
        # What llama.cpp is strong at: everything in memory, and long prompts.
        others = [one for one in requirements(sizes) if not one.case.startswith("start in")]
        others = others if "contest" in given.parts else []
        rounds = f"{given.streaming_rounds} rounds" + (f" (of the last rows: {given.rounds})" if others else "")
        caption = f"{sizes.shape}, four bits, {given.threads} cores, medians of {rounds}:"
        report.summary = summarise([(streaming, wanted), (contest, others)], OURS, caption, "strongest peer")
    report.values |= {"llama.cpp": given.llama_version, "BigMoeOnEdge": given.big_moe_version}
    return report


def contestants(sizes: Sizes, given: argparse.Namespace) -> Contestants:
    """Who reads experts while decoding."""
    files = Files(given.work_dir, sizes.shape)
    ours = Coterie(files.store, given.threads)
    before = None
    if given.before is not None:
        before = replace(ours, name=BEFORE, source=checked_out(given.before, given.work_dir) / "src")
    rivals = []
    given.big_moe_version = None
    if given.big_moe is not None:
        program = big_moe_program(given.big_moe)
        given.big_moe_version = version_of(program)
        caches = tuple(given.big_moe_cache or sizes.big_moe_caches)
        rivals = big_moe_engines(program, files.gguf, given.threads, caches, overlap=given.big_moe_overlap)
    return Contestants(
        ours=ours, before=before, big_moe=rivals, server=LlamaOverHttp(given.llama_server, files.gguf, given.threads)
    )


def prepare(sizes: Sizes, given: argparse.Namespace) -> tuple[FullSizeModel, list[Engine], list[Engine]]:
    """The model's files and llama.cpp; returns the model, and the engines for limited memory and without a limit."""
    model = FullSizeModel(SHAPES[sizes.shape])
    files = Files(given.work_dir, sizes.shape)
    _check_disk(given.work_dir, sizes.shape, files)
    files.make("gguf", "store")
    llama = build_llama(given.work_dir, source=given.llama_source, build=given.llama_build)
    given.llama_version, given.llama_server = llama.version, llama.server
    ours = Coterie(files.store, given.threads)
    mapped = LlamaCpp(llama.completion, files.gguf, given.threads, repacked=False)
    repacked = LlamaCpp(llama.completion, files.gguf, given.threads, repacked=True)
    dropping = [
        Coterie(files.store, given.threads, f"coterie --drop-cold {share:g}", drop_cold=share)
        for share in given.drop_cold
    ]
    return model, [ours, *dropping, mapped], [ours, mapped, repacked]


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
        caption = f"{_title(case)}: prompt of {case.prompt_tokens} tokens{measured}, {_rounds(contest, case)} rounds:"
        case_table(
            report,
            contest,
            case.name,
            ("first token", "prefill", "decode") if long else ("first token", "prefill"),
            caption,
        )
    require_ratios(report, contest, requirements(sizes), OURS)
    budgets = {case.name: case.memory for case in cases if case.memory is not None}
    require_budgets(report, contest, budgets, OURS)
    report.values["outcomes"] = [{"round": key[0], **asdict(one)} for key, one in contest.outcomes.items()]
    report.values["llama.cpp"] = given.llama_version


def _rounds(contest: Contest, case: Case) -> int:
    return len({number for number, name, _ in contest.outcomes if name == case.name})


def _check_disk(work: Path, shape: str, files: Files) -> None:
    """Ends before gigabytes are written that do not fit."""
    wanted = {files.gguf: gguf_nbytes(SHAPES[shape]), files.store / "coterie.json": store_nbytes(SHAPES[shape])}
    needed = sum(nbytes for path, nbytes in wanted.items() if not path.exists())
    free = shutil.disk_usage(work).free
    if needed > free:
        raise SystemExit(
            f"The model files need up to {needed / 1e9:.0f} GB in {work}, {free / 1e9:.0f} are free: choose another "
            "--work-dir, a smaller --shape, or --quick."
        )


def _check_cold() -> None:
    """Says so if other processes keep torch in the page cache: Coterie's start is then faster than a cold one."""
    drop_everything()
    torch = find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    library = Path(torch.origin).parent / "lib" / "libtorch_cpu.so"
    if library.exists() and cached_bytes(library) > library.stat().st_size / 10:
        print("Another process uses torch: times to the first token are not those of a cold start.", file=sys.stderr)


def _title(case: Case) -> str:
    return case.name[0].upper() + case.name[1:]


def _journal(given: argparse.Namespace, name: str) -> Journal:
    return Journal(given.work_dir / f"peers-{name}.jsonl", resume=given.resume)


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=3, help="rounds beside the ideal (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", choices=SHAPES, help="another model")
    parser.add_argument("--limits", type=float, nargs="+", metavar="GIB", help="other memory cgroups")
    parser.add_argument("--cases", nargs="+", metavar="TEXT", help="only cases whose name contains one of these")
    parser.add_argument(
        "--drop-cold", type=float, nargs="+", metavar="TAU", default=[], help="in limits, also Coterie with this option"
    )
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for one run (%(default)g)")
    parser.add_argument("--limited-timeout", type=float, metavar="SECONDS", help="for one that starts in a cgroup")
    parser.add_argument("--resume", action="store_true", help="keep the runs that an interrupted benchmark has made")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="only these: llama.cpp, routing and the ideal, "
        "transformers and accelerate, engines that stream experts"
    )  # fmt: skip
    parser.add_argument("--streaming-rounds", type=int, default=5, help="of engines that stream (%(default)s)")
    parser.add_argument("--big-moe", type=Path, metavar="PATH", help="program of BigMoeOnEdge, or where it was built")
    parser.add_argument("--big-moe-cache", type=int, nargs="+", metavar="MB", help="other sizes of its cache")
    parser.add_argument(
        "--big-moe-overlap", action="store_true", help="it also with --overlap, if its build can do that"
    )
    parser.add_argument(
        "--server-timeout", type=float, default=120.0, metavar="SECONDS", help="for llama-server (%(default)g)"
    )
    parser.add_argument("--before", metavar="COMMIT", help="compare the time to the first token with that of a commit")
    parser.add_argument("--llama-source", type=Path, help="a source tree of llama.cpp to use")
    parser.add_argument("--llama-build", type=Path, help="a build directory of llama.cpp to use, or to build in")
    given = parser.parse_args()
    if "streaming" not in given.parts and (given.big_moe or given.before):
        parser.error("--big-moe and --before belong to the part 'streaming', which --parts leaves out")
    if given.big_moe is None and (given.big_moe_cache or given.big_moe_overlap):
        parser.error("--big-moe-cache and --big-moe-overlap need --big-moe")
    # Killed politely, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))
    sizes = QUICK if given.quick else FULL
    changes: dict[str, object] = {"shape": given.shape} if given.shape else {}
    if given.limits:
        limits = tuple(int(limit * GIB) for limit in given.limits)
        changes |= {"limits": limits, "prefill_limits": limits, "streaming_limit": limits[0]}
    if changes:
        sizes = Sizes(**{**asdict(sizes), **changes})
    given.work_dir.mkdir(parents=True, exist_ok=True)
    if "streaming" in given.parts and find_spec("matplotlib") is None:
        raise SystemExit("The figure of the part 'streaming' needs Matplotlib: pip install '.[analysis]'.")
    model, limited, free = prepare(sizes, given)
    who = contestants(sizes, given) if "streaming" in given.parts else None
    wait_until_quiet(given.wait_quiet)
    report = Report("peers", "Coterie beside its peers", work=given.work_dir, quick=given.quick)
    # What an earlier benchmark has measured stays where that is not measured anew.
    resumed = given.resume or "contest" not in given.parts
    contest = Contest(model, Journal(given.work_dir / f"peers-{sizes.shape}.jsonl", resume=resumed))
    cases = contest_cases(sizes, given.timeout, given.limited_timeout)
    chosen = [
        (case, whole) for case, whole in cases if not given.cases or any(text in case.name for text in given.cases)
    ]
    try:
        _check_cold()
        if "contest" in given.parts:
            for number in range(given.rounds):
                for case, whole in chosen:
                    contest.run(case, free if whole else limited, number)
            publish_contest(report, contest, sizes, [case for case, _ in chosen], given)
        if "analysis" in given.parts:
            ours = limited[0]
            assert isinstance(ours, Coterie)
            beside = Contest(model, _journal(given, f"{sizes.shape}-ideal"))
            wanted = {one.case for one in requirements(sizes)}
            paired = [case for case, _ in chosen if case.limit is not None and case.new_tokens > 2]
            paired = [case for case in paired if case.name in wanted] or paired
            run_beside_ideal(beside, sizes, ours, paired, given.pairs, given.timeout)
            publish_beside_ideal(report, beside, sizes, paired)
            record_routing(report, contest, sizes, ours, given.work_dir, given.timeout)
        if "stock" in given.parts:
            stock_contest(report, sizes, given, 1)
        streaming = streaming_contest(sizes, given, who, model) if who is not None else None
    except CgroupUnavailable as reason:
        raise SystemExit(f"This benchmark needs a memory cgroup (root, cgroup v1 or v2): {reason}.") from reason
    except PermissionError as reason:
        raise SystemExit(f"This benchmark empties the page cache, which takes root: {reason}.") from reason
    reports = [report] if set(given.parts) - {"streaming"} else []
    if streaming is not None:
        reports.append(publish_streaming_contest(streaming, contest, sizes, given))
    return max([one.finish() for one in reports])


if __name__ == "__main__":
    sys.exit(main())
