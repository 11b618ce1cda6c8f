"""The engines: how each is started for a case, and how its own report is read."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from fullsize.model import FullSizeModel
from fullsize.walk import text_of
from harness.cgroup import CgroupRun
from harness.page_cache import drop_everything
from harness.streamed import StreamedRun, run_streamed
from harness.timed_steps import BusyProcess
from peers.case import Case, Outcome, outcome_of

_BENCHMARKS = Path(__file__).resolve().parent.parent
CONTEXT_SLACK = 32


class Engine(Protocol):
    """Something that generates."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def echoes(self) -> bool:
        """Whether it prints the prompt before the answer, and figures after it."""
        ...

    @contextmanager
    def started(self, case: Case, prompt: str) -> Iterator[tuple[list[str], dict[str, str]]]:
        """The command and additions to the environment; what they need exists inside the context."""
        ...

    def report(self, run: CgroupRun, outcome: Outcome) -> None:
        """Adds to an outcome what only the engine's own report says. Called inside :meth:`started`."""
        ...


def _driver_flags(case: Case, prompt: str, threads: int, report: Path) -> list[object]:
    """What every driver of ours takes."""
    flags: list[object] = ["--prompt", prompt, "--new-tokens", case.new_tokens, "--threads", threads]
    return [*flags, "--report", report, *(["--memory", case.memory] if case.memory is not None else [])]


@dataclass
class Coterie:
    """Coterie under a budget.

    Attributes:
        store: The model.
        threads: Threads.
        name: For people.
        trace: Where to record the routing.
        served: Whether to report what each layer of each decode step found resident, which costs hardly any time.
        costs: Whether to measure afterwards what a step's parts and reads take.
        prefetch: As ``load`` takes it; None for its default.
        drop_cold: Likewise.
        grown: Whether to wait until the cache has its memory before steps are measured.
        memory_after: Tokens after which to report how much memory the cache has; None for not at all.
        source: A directory with the Coterie to run; None for this one.
    """

    store: Path
    threads: int
    name: str = "coterie"
    trace: Path | None = None
    served: bool = False
    costs: bool = False
    prefetch: str | None = None
    drop_cold: float | None = None
    grown: bool = False
    memory_after: int | None = None
    source: Path | None = None
    echoes: ClassVar[bool] = False

    @contextmanager
    def started(self, case: Case, prompt: str) -> Iterator[tuple[list[str], dict[str, str]]]:
        """See :class:`Engine`."""
        with tempfile.TemporaryDirectory() as folder:
            self._said = Path(folder) / "report.json"
            flags = _driver_flags(case, prompt, self.threads, self._said)
            flags += ["--max-context", case.prompt_tokens + case.new_tokens + CONTEXT_SLACK]
            flags += ["--warm"] if case.warm else []
            flags += ["--trace", self.trace] if self.trace is not None else []
            flags += ["--served"] if self.served else []
            flags += ["--costs"] if self.costs else []
            flags += ["--prefetch", self.prefetch] if self.prefetch is not None else []
            flags += ["--drop-cold", self.drop_cold] if self.drop_cold is not None else []
            flags += ["--grow-after", case.settle_tokens] if self.grown else []
            flags += ["--memory-after", self.memory_after] if self.memory_after is not None else []
            command = [sys.executable, "-m", "peers.coterie_driver", str(self.store), *map(str, flags)]
            yield command, {"PYTHONPATH": python_path(self.source)}

    def report(self, run: CgroupRun, outcome: Outcome) -> None:
        """See :class:`Engine`."""
        if self._said.exists():
            outcome.own = json.loads(self._said.read_text())
            prefill_s = outcome.own["prefill_s"]
            assert isinstance(prefill_s, float)
            outcome.prefill_tokens_per_s = int(str(outcome.own["prompt_tokens"])) / prefill_s


@dataclass
class LlamaCpp:
    """llama.cpp's own program for one completion.

    Attributes:
        program: The program.
        gguf: The model.
        threads: Threads.
        repacked: Whether weights are copied into the layouts of its fastest kernels, which takes the whole model in
            memory; otherwise the file is mapped, and the kernel's page cache is the cache of experts.
    """

    program: Path
    gguf: Path
    threads: int
    repacked: bool
    echoes: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """With its mode."""
        return "llama.cpp repacked" if self.repacked else "llama.cpp mmap"

    @contextmanager
    def started(self, case: Case, prompt: str) -> Iterator[tuple[list[str], dict[str, str]]]:
        """See :class:`Engine`."""
        words: list[object] = [self.program, "-m", self.gguf, "-p", prompt, "-n", case.new_tokens, "-t", self.threads]
        words += ["-c", case.prompt_tokens + case.new_tokens + CONTEXT_SLACK]
        # Greedy by a sampler that looks at one token only; no chat, nothing but the completion on standard output.
        words += ["--samplers", "top_k", "--top-k", 1, "-no-cnv", "--simple-io", "--no-display-prompt", "--perf"]
        words += ["--load-mode", "none"] if self.repacked else ["--load-mode", "mmap", "--no-repack"]
        words += [] if case.warm else ["--no-warmup"]
        yield list(map(str, words)), {}

    def report(self, run: CgroupRun, outcome: Outcome) -> None:
        """See :class:`Engine`."""
        for name, pattern in (("prefill", "prompt eval"), ("decode", " {3,}eval"), ("load", "load")):
            if found := re.search(rf"{pattern} time = +([0-9.]+) ms(?: / +(\d+) (?:tokens|runs))?", run.stderr):
                outcome.own[f"{name}_s"] = float(found[1]) / 1e3
                if found[2]:
                    outcome.own[f"{name}_tokens"] = int(found[2])
        if "prefill_s" in outcome.own:
            outcome.prefill_tokens_per_s = float(str(outcome.own["prefill_tokens"])) / float(
                str(outcome.own["prefill_s"])
            )


@dataclass
class LlamaOverHttp:
    """llama.cpp's server with the file mapped, asked for one completion.

    Attributes:
        program: The server.
        gguf: The model.
        threads: Threads.
    """

    program: Path
    gguf: Path
    threads: int
    name: str = "llama-server"
    echoes: ClassVar[bool] = False

    @contextmanager
    def started(self, case: Case, prompt: str) -> Iterator[tuple[list[str], dict[str, str]]]:
        """See :class:`Engine`."""
        with tempfile.TemporaryDirectory() as folder:
            self._said = Path(folder) / "report.json"
            flags = _driver_flags(case, prompt, self.threads, self._said)
            flags += ["--program", self.program, "--prompt-tokens", case.prompt_tokens]
            flags += ["--context", case.prompt_tokens + case.new_tokens + CONTEXT_SLACK]
            command = [sys.executable, "-m", "peers.server_driver", str(self.gguf), *map(str, flags)]
            yield command, {"PYTHONPATH": python_path()}

    report = Coterie.report


@dataclass
class Transformers:
    """Stock transformers, or with accelerate's disk offload.

    Attributes:
        checkpoint: The model in bfloat16.
        threads: Threads.
        offload: Directory for what accelerate writes; None for stock, which holds everything in memory.
        packages: Directory with accelerate.
    """

    checkpoint: Path
    threads: int
    offload: Path | None = None
    packages: Path | None = None
    echoes: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """With its mode."""
        return "transformers" if self.offload is None else "accelerate disk offload"

    @contextmanager
    def started(self, case: Case, prompt: str) -> Iterator[tuple[list[str], dict[str, str]]]:
        """See :class:`Engine`."""
        with tempfile.TemporaryDirectory() as folder:
            self._said = Path(folder) / "report.json"
            flags: list[object] = ["--prompt", prompt, "--new-tokens", case.new_tokens, "--threads", self.threads]
            flags += ["--report", self._said]
            if self.offload is not None and case.memory is not None:
                flags += ["--offload", self.offload, "--memory", case.memory]
            command = [sys.executable, "-m", "peers.transformers_driver", str(self.checkpoint), *map(str, flags)]
            yield command, {"PYTHONPATH": python_path(self.packages)}

    report = Coterie.report


def measure(engine: Engine, case: Case, model: FullSizeModel) -> Outcome:
    """One run from a cold page cache; one more if the first has lost the end of its output.

    llama.cpp prints from a thread of its own, which at exit sometimes loses the last lines.
    """
    outcome = _measure(engine, case, model)
    return _measure(engine, case, model) if outcome.cut_short else outcome


def _measure(engine: Engine, case: Case, model: FullSizeModel) -> Outcome:
    prompt = "".join(map(text_of, model.walk.tokens(0, case.prompt_tokens)))
    drop_everything()
    beside = BusyProcess() if case.busy else nullcontext()
    with engine.started(case, prompt) as (command, environment):
        with beside:
            run: StreamedRun = run_streamed(command, case.limit, env=environment, timeout_s=case.timeout_s)
        walk = model.walk.tokens(case.prompt_tokens, case.new_tokens)
        outcome = outcome_of(engine.name, case, run, walk, echoes=engine.echoes)
        engine.report(run, outcome)
    if not outcome.expected and not outcome.failure:
        outcome.failure = "computed other tokens than the model's"
    outcome.cut_short = run.returncode == 0 and (len(outcome.tokens) < case.new_tokens or not outcome.own)
    return outcome


def python_path(*more: Path | None) -> str:
    """This process's own search path for the drivers, so that all measure the same Coterie."""
    return ":".join([str(_BENCHMARKS), *(str(path) for path in more if path is not None), *filter(None, sys.path)])
