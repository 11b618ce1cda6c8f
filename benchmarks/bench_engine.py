"""How long others wait for one who asks: until a stream begins, until a token follows, until a request is gone.

- **Streams**: `coterie serve` in a process of its own is asked for a stream: while it is idle, while it reads another
  request's long prompt, and for a long prompt itself. Measured is the time until the first byte of the response, and
  the longest time in which a stream says nothing. Nothing has to be computed for either: the ceiling is what HTTP
  takes, beside a model that has all cores.
- **Giving up**: a request is given up somewhere in its prompt, or in its answer, by itself and beside another one that
  is being answered. Measured is the time until its place and its memory are free, and how many layers are begun
  meanwhile. It must take no longer than the slowest layer.
- **Stalls**: while a long prompt is read, another request is being answered. Measured is the longest time between two
  of its tokens. It must take no longer than the slowest piece of the prompt and a step.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fullsize.files import Files
from harness.machine import wait_until_quiet
from harness.options import options
from harness.report import Report

FIRST_BYTE_S = 0.1
GAP_S = 5.0
SLACK_S = 0.02
"""For threads to be woken."""
_POLL_S = 0.0005
_READY = re.compile(r"http://127\.0\.0\.1:(\d+)/v1")
_OPENING_S = 600.0
_LONG = 1000
"""New tokens of an answer that others are measured beside: longer than that takes, and four fit into the memory."""
_LONGEST_S = 600.0


class Pace:
    """Times layers and passes, of whatever phase, where each layer comes to its experts: an observer is told late.

    Attributes:
        layers: Seconds from each layer to the next one of the same pass, by phase.
        passes: Seconds from the first layer of a pass to that of the next, by the phase of the first.
        begun: Layers so far.
    """

    def __init__(self) -> None:
        self.layers: dict[str, list[float]] = {"prefill": [], "decode": []}
        self.passes: dict[str, list[float]] = {"prefill": [], "decode": []}
        self.begun = 0
        self._last: tuple[int, str, int, float, float] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, layers are timed."""
        from coterie.integration.quantised import TokenExperts
        from coterie.passes.bank import StreamedBank

        route, compute = StreamedBank.route, TokenExperts.compute

        def routed(bank: Any, now: Any, *args: Any) -> Any:
            self._note(now, bank.bank.key.layer)
            return route(bank, now, *args)

        def computed(experts: Any, state: Any) -> Any:
            self._note(experts._streamed.now(), experts._streamed.bank.key.layer)
            return compute(experts, state)

        StreamedBank.route, TokenExperts.compute = routed, computed  # type: ignore[method-assign]
        try:
            yield
        finally:
            StreamedBank.route, TokenExperts.compute = route, compute  # type: ignore[method-assign]

    def slowest_layer(self, phases: Sequence[str] = ("prefill", "decode")) -> float:
        """Seconds."""
        return max(itertools.chain.from_iterable(self.layers[phase] for phase in phases))

    def _note(self, now: Any, layer: int) -> None:
        at = time.perf_counter()
        if self._last is None:
            self.begun += 1
            self._last = (now.number, now.phase, layer, at, at)
            return
        number, phase, before, began, last = self._last
        if number == now.number and before == layer:
            return  # the native way has left it to the other one
        self.begun += 1
        if number == now.number:
            self.layers[phase].append(at - last)
            began_now = began
        else:
            self.passes[phase].append(at - began)
            began_now = at
        self._last = (now.number, now.phase, layer, began_now, at)


def until(condition: Callable[[], bool]) -> float:
    """Seconds until something is so; ends the program if that does not come to be."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > _LONGEST_S:
            raise SystemExit(f"What is measured has not come to be within {_LONGEST_S:g} s.")
        time.sleep(_POLL_S)
    return time.perf_counter() - began


def measure_giving_up(report: Report, engine: Any, pace: Pace, prompt: list[int], trials: int) -> None:
    """Adds how long it takes until a request is gone."""
    from coterie.generation.sampling import Sampling

    table = report.table(
        f"Given up, {trials} times each, until place and memory are free:",
        ("where", "beside others", "median, ms", "longest, ms", "slowest layer, ms", "layers begun meanwhile"),
    )
    draw = random.Random(0)
    endless = Sampling(max_new_tokens=_LONG, greedy=True, ignore_eos=True)
    for others in (0, 1, 3):
        beside = [engine.submit(prompt[: 8 + number], endless) for number in range(others)]
        until(lambda: all(one.phase == "decode" for one in beside))  # noqa: B023
        for phase in ("prefill", "decode"):
            taken, begun = [], []
            for _ in range(trials):
                # Begins like no other: what is known of a prompt is not read.
                ticket = engine.submit(
                    [draw.randrange(16, 4000), *(prompt if phase == "prefill" else prompt[:32])], endless
                )
                until(lambda one=ticket, at=phase: one.phase == at)  # type: ignore[misc]
                time.sleep(draw.random() * 0.2)
                before = pace.begun
                began = time.perf_counter()
                ticket.cancel()
                until(lambda most=others: engine.running == most)  # type: ignore[misc]
                taken.append(time.perf_counter() - began)
                begun.append(pace.begun - before)
            taken.sort()
            slowest = pace.slowest_layer()
            cells = (statistics.median(taken), taken[-1], slowest)
            table.rows.append((phase, str(others), *(f"{1e3 * one:.1f}" for one in cells), str(max(begun))))
            report.values[f"given up in {phase} beside {others}"] = {"seconds": taken, "layers": begun}
            most = slowest + SLACK_S
            report.require(
                f"gone within a layer, given up in {phase} beside {others}",
                f"{1e3 * taken[-1]:.1f} ms of {1e3 * most:.1f}", taken[-1] <= most,
            )  # fmt: skip
            report.require(
                f"no further layer is computed, given up in {phase} beside {others}",
                f"{max(begun)} begun",
                max(begun) <= 1,
            )
        for one in beside:
            one.cancel()
        until(lambda: engine.running == 0)
    until(lambda: engine.governor.lent == 0)
    held = engine.governor.held + engine.governor.promised
    report.require("nothing is held afterwards", f"{held} bytes", held == 0)


def measure_stalls(report: Report, engine: Any, pace: Pace, prompt: list[int]) -> None:
    """Adds how long an answer stops while a prompt is read."""
    from coterie.generation.sampling import Sampling

    arrivals: list[float] = []

    def read(ticket: Any) -> None:
        while (event := ticket.event()) is not None and type(event).__name__ not in ("Done", "Failed"):
            if type(event).__name__ == "Piece":
                arrivals.append(time.perf_counter())

    beside = engine.submit(prompt[:8], Sampling(max_new_tokens=_LONG, greedy=True, ignore_eos=True))
    reader = threading.Thread(target=read, args=(beside,))
    reader.start()
    until(lambda: len(arrivals) > 3)
    began = time.perf_counter()
    first = engine.submit(prompt, Sampling(max_new_tokens=1, greedy=True))
    first.result()
    ended = time.perf_counter()
    beside.cancel()
    reader.join()
    times = [began, *(one for one in arrivals if began < one < ended)]
    gaps = sorted(after - before for before, after in itertools.pairwise(times))
    longest = gaps[-1] if gaps else ended - began
    most = max(pace.passes["prefill"]) + 2 * max(pace.passes["decode"]) + SLACK_S
    table = report.table(
        f"While a prompt of {len(prompt)} tokens was read in {ended - began:.1f} s:",
        ("tokens of the answer beside it", "longest time between two, ms", "slowest piece and steps, ms"),
    )
    table.rows.append((str(len(gaps)), f"{1e3 * longest:.0f}", f"{1e3 * most:.0f}"))
    report.values["gaps"] = gaps
    report.require("an answer waits for no more than a piece", f"{1e3 * longest:.0f} ms", longest <= most)


@contextmanager
def served(path: str | Path, memory: Sequence[str], folder: Path) -> Iterator[int]:
    """`coterie serve` in a process of its own; gives its port."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "bench_engine_server.log"
    command = [sys.executable, "-m", "coterie", "serve", str(path), "--port", "0", *memory]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            end = time.monotonic() + _OPENING_S
            while (found := _READY.search(log.read_text(errors="replace").replace("\n", ""))) is None:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"The server did not begin:\n{log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield int(found[1])
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
    log.unlink(missing_ok=True)


def stream(port: int, prompt: Sequence[int], new: int) -> tuple[float, float, float]:
    """Asks for a stream and reads it; seconds to its first byte, the longest silence after it, and all of it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    body = json.dumps({"prompt": list(prompt), "max_tokens": new, "stream": True, "temperature": 0})
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    last = first = time.perf_counter() - began
    if response.status != 200:
        raise SystemExit(f"The server answered {response.status}: {response.read()[:500]!r}")
    silence = 0.0
    while response.read1(65536):
        now = time.perf_counter() - began
        silence, last = max(silence, now - last), now
    connection.close()
    return first, silence, last


def measure_streams(report: Report, port: int, prompt: list[int], trials: int) -> None:
    """Adds how soon a stream begins, and how long it says nothing."""
    table = report.table(
        "Streams of `coterie serve`:",
        ("asked", "streams", "first byte, ms, median", "longest, ms", "longest silence, s", "all of the longest, s"),
    )
    draw = random.Random(2)

    def short() -> tuple[float, float, float]:
        return stream(port, [draw.randrange(16, 4000) for _ in range(16)], 8)

    def add(asked: str, found: list[tuple[float, float, float]]) -> None:
        firsts, silences, wholes = zip(*found, strict=True)
        table.rows.append((
            asked, str(len(found)), f"{1e3 * statistics.median(firsts):.1f}", f"{1e3 * max(firsts):.1f}",
            f"{max(silences):.2f}", f"{max(wholes):.1f}",
        ))  # fmt: skip
        report.values[f"streams: {asked}"] = found
        report.require(
            f"{asked}: first byte within {FIRST_BYTE_S:g} s", f"{max(firsts):.3f} s", max(firsts) < FIRST_BYTE_S
        )
        report.require(
            f"{asked}: no silence of more than {GAP_S:g} s", f"{max(silences):.2f} s", max(silences) <= GAP_S + SLACK_S
        )

    short()  # the first one reads experts that none has read yet
    add("while nothing else is asked", [short() for _ in range(trials)])
    reading: list[tuple[float, float, float]] = []
    reader = threading.Thread(target=lambda: reading.append(stream(port, prompt, 1)))
    reader.start()
    time.sleep(0.2)
    beside: list[tuple[float, float, float]] = []
    while reader.is_alive() and len(beside) < trials:
        beside.append(short())
    reader.join()
    if not beside:
        raise SystemExit("The long prompt was read before anybody asked: use a longer one (--length).")
    add("while another's long prompt is read", beside)
    add(f"with a prompt of {len(prompt)} tokens", reading)


def measure(
    report: Report, path: str | Path, *, memory: str, length: int, trials: int, piece: int, folder: Path
) -> None:
    """Adds all of one model."""
    import coterie

    draw = random.Random(1)
    prompt = [draw.randrange(16, 4000) for _ in range(length)]
    context = [] if memory.endswith("%") else ["--max-context", str(2 * length)]
    budget = ["--expert-memory", memory] if memory.endswith("%") else ["--memory", memory]
    with served(path, [*budget, *context], folder) as port:
        measure_streams(report, port, prompt, trials)
    options = {"expert_memory": memory} if memory.endswith("%") else {"memory": memory, "max_context": 2 * length}
    model = coterie.load(path, **options)  # type: ignore[arg-type]
    pace = Pace()
    with pace.watching(), coterie.Engine(model, piece=piece) as engine:
        measure_stalls(report, engine, pace, prompt)
        measure_giving_up(report, engine, pace, prompt, trials)
    model.coterie.close()


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--length", type=int, default=4096, help="tokens of the long prompt (%(default)s)")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--memory", default="8GiB", help="budget (%(default)s)")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="of the full-size model (%(default)s)")
    given = parser.parse_args()
    wait_until_quiet(given.wait_quiet)
    report = Report("engine", "Waiting for one another", work=given.work_dir.parent, quick=given.quick)
    if given.quick:
        measure(report, "bundled", memory="50%", length=1500, trials=3, piece=64, folder=given.work_dir)
    else:
        files = Files(given.work_dir, given.shape)
        if not files.store.exists():
            files.make("store")
        measure(
            report, files.store, memory=given.memory, length=given.length, trials=given.trials, piece=512,
            folder=given.work_dir,
        )  # fmt: skip
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
