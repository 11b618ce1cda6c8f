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

With ``--drop-cold TAU`` Coterie takes part in limited memory once more, leaving out light experts that are not in it.
The text must be the same: whatever experts add, this model's next token is clear.

An interrupted benchmark goes on with ``--resume``; ``--quick`` uses a model of 50 MB to see that all of it works.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
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
from peers.analysis import publish_beside_ideal, record_routing, run_beside_ideal
from peers.case import Case
from peers.contest import Contest
from peers.engines import Coterie, Engine, LlamaCpp, Transformers
from peers.llama_build import build_llama
from peers.packages import installed
from peers.sizes import FULL, GIB, OURS, QUICK, Sizes, contest_cases, requirements, size_name
from peers.tables import case_table, require_budgets, require_ratios, summarise


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


def prepare(sizes: Sizes, given: argparse.Namespace) -> tuple[FullSizeModel, list[Engine], list[Engine]]:
    """The model's files and llama.cpp; returns the model, and the engines for limited memory and without a limit."""
    model = FullSizeModel(SHAPES[sizes.shape])
    files = Files(given.work_dir, sizes.shape)
    _check_disk(given.work_dir, sizes.shape, files)
    files.make("gguf", "store")
    llama = build_llama(given.work_dir, source=given.llama_source, build=given.llama_build)
    given.llama_version = llama.version
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
    caption = f"{sizes.shape}, four bits, {given.threads} cores, medians of {given.rounds} rounds:"
    report.summary = summarise(contest, requirements(sizes), OURS, caption)
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
    cases = contest_cases(sizes, given.timeout, given.limited_timeout)
    chosen = [
        (case, whole) for case, whole in cases if not given.cases or any(text in case.name for text in given.cases)
    ]
    try:
        _check_cold()
        for number in range(given.rounds):
            for case, whole in chosen:
                contest.run(case, free if whole else limited, number)
        publish_contest(report, contest, sizes, [case for case, _ in chosen], given)
        if not given.no_analysis:
            ours = limited[0]
            assert isinstance(ours, Coterie)
            beside = Contest(model, _journal(given, f"{sizes.shape}-ideal"))
            wanted = {one.case for one in requirements(sizes)}
            paired = [case for case, _ in chosen if case.limit is not None and case.new_tokens > 2]
            paired = [case for case in paired if case.name in wanted] or paired
            run_beside_ideal(beside, sizes, ours, paired, given.pairs, given.timeout)
            publish_beside_ideal(report, beside, sizes, paired)
            record_routing(report, contest, sizes, ours, given.work_dir, given.timeout)
        if not given.no_stock:
            stock_contest(report, sizes, given, 1)
    except CgroupUnavailable as reason:
        raise SystemExit(f"This benchmark needs a memory cgroup (root, cgroup v1 or v2): {reason}.") from reason
    except PermissionError as reason:
        raise SystemExit(f"This benchmark empties the page cache, which takes root: {reason}.") from reason
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
