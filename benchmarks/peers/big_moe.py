"""BigMoeOnEdge, an engine in C++ on llama.cpp that reads experts from a GGUF file into a cache of its own.

It is neither fetched nor built here: who wants it beside the others names its program, built as its own documentation
says. It must be built on llama.cpp's kernels for this very machine, as the others are.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.cgroup import CgroupRun
from peers.case import Case, Outcome
from peers.engines import CONTEXT_SLACK

NAME = "BigMoeOnEdge"
IO_THREADS = 4
LEAST_CACHE_MB = 1500
"""Below that it asks for ``--force-cache``."""
_PROGRAM = "bmoe-cli"
_FIGURES = {
    "prefill_s": r"prefill: \d+ tokens, ([0-9.]+) s",
    "prompt_tokens": r"prefill: (\d+) tokens",
    "load_s": r"model load ([0-9.]+) s",
    "compute_s": r"\(compute ([0-9.]+) \+",
    "reads_s": r"flash I/O ([0-9.]+) s/token",
    "hit_rate": r"moe-cache: ([0-9.]+)% hit",
    "resident_mib": r"hit, resident ([0-9.]+) MiB",
}


@dataclass
class BigMoe:
    """BigMoeOnEdge with a cache of one size.

    Attributes:
        program: Its program.
        gguf: The model.
        threads: Threads that compute.
        cache_mb: The cache's size, in its own unit of 2^20 bytes.
        overlap: Whether experts are read while others of their layer compute, which its build must be able to do.
    """

    program: Path
    gguf: Path
    threads: int
    cache_mb: int
    overlap: bool = False
    echoes: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """With the cache's size."""
        return f"{NAME}, {self.cache_mb} MB" + (", overlap" if self.overlap else "")

    @contextmanager
    def started(self, case: Case, prompt: str) -> Iterator[tuple[list[str], dict[str, str]]]:
        """See :class:`peers.engines.Engine`; without ``--temp`` it is greedy."""
        words: list[object] = [self.program, "-m", self.gguf, "-p", prompt, "-n", case.new_tokens, "-t", self.threads]
        words += ["-c", case.prompt_tokens + case.new_tokens + CONTEXT_SLACK, "--moe-stream"]
        words += ["--cache-mb", self.cache_mb, "--io-threads", IO_THREADS]
        words += ["--force-cache"] if self.cache_mb < LEAST_CACHE_MB else []
        words += ["--overlap"] if self.overlap else []
        yield list(map(str, words)), {}

    def report(self, run: CgroupRun, outcome: Outcome) -> None:
        """See :class:`peers.engines.Engine`; its hit rate is that of the prompt, too."""
        figures = {name: float(found[1]) for name, form in _FIGURES.items() if (found := re.search(form, run.stdout))}
        outcome.own |= figures
        if figures.get("prefill_s"):
            outcome.prefill_tokens_per_s = figures["prompt_tokens"] / figures["prefill_s"]


def big_moe_program(path: Path) -> Path:
    """The program in a build, or itself.

    Args:
        path: The program, or a directory that it lies in.

    Raises:
        SystemExit: If there is none.
    """
    found = [path] if path.is_file() else sorted(path.rglob(_PROGRAM)) if path.is_dir() else []
    programs = [one for one in found if one.is_file()]
    if not programs:
        raise SystemExit(f"There is no {_PROGRAM} in {path}: name the program, or the directory that it was built in.")
    return programs[0].resolve()


def version_of(program: Path) -> str:
    """What a program calls itself.

    Raises:
        SystemExit: If it does not run.
    """
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    except OSError as reason:
        raise SystemExit(f"{program} does not run: {reason.strerror}.") from reason
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"{program} does not run:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout.strip().splitlines()[0]


def big_moe_engines(program: Path, gguf: Path, threads: int, sizes: tuple[int, ...], *, overlap: bool) -> list[BigMoe]:
    """It with each size of its cache, and if wanted each with overlapped reads, too."""
    ways = (False, True) if overlap else (False,)
    return [BigMoe(program, gguf, threads, size, way) for way in ways for size in sizes]
