"""`coterie serve` beside llama-server: tokens per second of 1 to 16 streams at once, of the same full-size model.

Each server runs in a memory cgroup of its own and is asked over HTTP, in the same way. As many streams begin as are
measured at most. When all of them have had some tokens, the next ones are timed; then half of the clients go, and what
is left is timed again, down to one. So every prompt is read once, contexts are as long as the answers so far, and what
is compared with one stream was measured in the same minutes. Tokens are greedy, and every one of them is checked: what
the model says is known (``fullsize/walk.py``).

Without a limit all of the model is in memory: llama.cpp copies its weights into the layouts of its fastest kernels,
and Coterie is asked for something long first, so that its experts have been read. In a limit llama.cpp maps its file,
and the kernel's page cache is its cache of experts; a step of it can take ten seconds, so that a number of streams is
given no longer than ``--seconds``, and then all of its tokens count.

A server that has been measured is kept at once: an interrupted benchmark goes on with ``--resume``.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fullsize.files import Files
from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES
from fullsize.walk import text_of
from harness.cgroup import CgroupUnavailable
from harness.journal import Journal
from harness.machine import load_average, wait_until_quiet
from harness.options import options
from harness.page_cache import drop
from harness.report import Report
from peers.listeners import Listener
from peers.llama_build import build_llama
from peers.servers import CoterieServer, LlamaServer, Room, Running, Server, served
from peers.sizes import GIB, size_name

_APART = 1000
"""Tokens of the walk between two prompts: other topics."""
_READ = 1024
"""Tokens of the prompt that has experts read."""
_POLL_S = 0.02


def place(stream: int) -> int:
    """Where on the walk a stream's prompt begins."""
    return _APART * (stream + 1)


def context_of(given: Any) -> int:
    """Tokens that a stream can come to: those of all numbers of streams, and of a round for each prompt before."""
    return given.length + len(given.streams) * (given.settle + given.tokens) + 2 * max(given.streams) + 64


def timed(listeners: Sequence[Listener], settle: int, tokens: int, seconds: float) -> dict[str, Any]:
    """Tokens per second of some streams, from now on.

    Args:
        listeners: The streams.
        settle: Tokens that each gets before.
        tokens: Tokens of each that are timed.
        seconds: After that, what has come counts.
    """
    began, had = time.perf_counter(), [len(one.times) for one in listeners]

    def all_have(more: int) -> bool:
        return all(len(one.times) >= first + more for one, first in zip(listeners, had, strict=True))

    end = began + seconds
    while not all_have(settle + tokens) and time.perf_counter() < end:
        if any(one.ended is not None for one in listeners):
            raise SystemExit(f"A stream has ended: {[one.ended for one in listeners]}")
        time.sleep(_POLL_S)
    whole = all_have(settle + tokens)
    if whole:
        start = max(one.times[first + settle - 1] for one, first in zip(listeners, had, strict=True))
        stop = max(one.times[first + settle + tokens - 1] for one, first in zip(listeners, had, strict=True))
        speed = sum(start < at <= stop for one in listeners for at in one.times) / max(stop - start, 1e-9)
    else:
        # From token to token of each: those of one step come at nearly one moment. Of one that got a single token, the
        # one before that counts, too.
        since = [first if len(one.times) > first + 1 else first - 1 for one, first in zip(listeners, had, strict=True)]
        came = [one.times[first:] for one, first in zip(listeners, since, strict=True)]
        speed = sum((len(times) - 1) / (times[-1] - times[0]) for times in came if len(times) > 1)
    return {"speed": speed, "whole": whole, "load": load_average()}


def curve(running: Running, model: FullSizeModel, given: Any) -> dict[str, Any]:
    """What a server does with each number of streams, the most first."""
    most, numbers = context_of(given) - given.length, sorted(given.streams, reverse=True)
    prompts = [model.walk.tokens(place(stream), given.length) for stream in range(numbers[0])]
    asked = time.perf_counter()
    listeners = [Listener(running.port, "".join(map(text_of, prompt)), most) for prompt in prompts]
    try:
        while not all(one.times for one in listeners):
            if any(one.ended is not None for one in listeners) or time.perf_counter() - asked > given.timeout:
                raise SystemExit(f"Not all streams begin: {[one.ended for one in listeners]}")
            time.sleep(_POLL_S)
        points, first = {}, [one.times[0] - asked for one in listeners]
        for number in numbers:
            for one in listeners[number:]:
                one.leave()
            points[str(number)] = timed(listeners[:number], given.settle, given.tokens, given.seconds)
    finally:
        for one in listeners:
            one.leave()
    right = [
        one.tokens[: len(one.times)] == model.walk.tokens(place(stream) + given.length, len(one.times))
        for stream, one in enumerate(listeners)
    ]
    return {"points": points, "right": all(right), "first_s": max(first), "ready_s": running.ready_s}


def measure(journal: Journal, server: Server, limit: int | None, number: int, model: FullSizeModel, given: Any) -> None:
    """One round of one server, unless the journal has it."""
    key = key_of(server.name, limit, number, given)
    if journal.of(key) is not None:
        return
    drop([server.file])
    room = Room(limit=limit, streams=max(given.streams), context=context_of(given))
    path = os.pathsep.join(filter(None, sys.path))
    with served(server, room, path=path, timeout_s=given.timeout) as running:
        if limit is None and server.reads_first:
            length = min(_READ, room.streams * room.context - 64)
            reading = Listener(running.port, "".join(map(text_of, model.walk.tokens(0, length))), 1)
            reading.wait(given.timeout)
            if reading.ended != "finished":
                raise SystemExit(f"The experts are not read: {reading.ended}")
        found = curve(running, model, given)
    run = running.run
    found |= {"resident": run.resident, "usage": run.usage, "oom_kills": run.oom_kills, "seconds": run.seconds}
    journal.keep(key, found)
    speeds = {streams: f"{point['speed']:.2f}" for streams, point in found["points"].items()}
    print(f"{_where(limit)}, {server.name}: {speeds} tok/s, {run.seconds:.0f} s", file=sys.stderr, flush=True)


def key_of(name: str, limit: int | None, number: int, given: Any) -> dict[str, object]:
    """What a round of a server is known by."""
    settings = {one: getattr(given, one) for one in ("shape", "streams", "length", "settle", "tokens", "threads")}
    return {"server": name, "limit": limit, "round": number, **settings}


def add(report: Report, journal: Journal, names: Sequence[str], limit: int | None, given: Any) -> None:
    """Adds the curves in so much memory."""
    rounds = {
        name: [journal.of(key_of(name, limit, number, given)) for number in range(given.rounds)] for name in names
    }
    columns = [text for name in names for text in (f"{name}, tok/s", "over one")]
    table = report.table(
        f"{given.shape}, {_where(limit)}, {given.threads} threads, prompts of {given.length} tokens, "
        f"{given.tokens} tokens of each stream timed after {given.settle}; {given.rounds} rounds:",
        ("streams", *columns, *(["ratio"] if len(names) > 1 else [])),
    )
    for streams in map(str, sorted(given.streams)):
        cells, middles = [streams], []
        for name in names:
            points = [one["points"][streams] for one in rounds[name]]
            alone = [one["points"][str(min(given.streams))]["speed"] for one in rounds[name]]
            values = [point["speed"] for point in points]
            over = [value / one for value, one in zip(values, alone, strict=True) if one]
            middles.append(statistics.median(values))
            cells += [
                _spread(values) + ("" if all(point["whole"] for point in points) else " (time ended)"),
                _spread(over) if over else "–",
            ]
        cells += [f"{middles[0] / middles[1]:.2f}" if middles[1] else "–"] if len(names) > 1 else []
        table.rows.append(cells)
    facts = report.table(
        f"The servers, {_where(limit)}:",
        ("server", "until it can be asked, s", "until all streams have begun, s", "memory, GiB", "cgroup's peak, GiB"),
    )
    for name, found in rounds.items():
        ready, first = ([one[what] for one in found] for what in ("ready_s", "first_s"))
        memory, peak = (max(one[what] for one in found) / GIB for what in ("resident", "usage"))
        facts.rows.append((name, _spread(ready), _spread(first), f"{memory:.2f}", f"{peak:.2f}"))
        report.values[f"{name}, {_where(limit)}"] = found
        right = all(one["right"] for one in found)
        report.require(f"{name}, {_where(limit)}: every token is the model's", "yes" if right else "no", right)
        kills = sum(one["oom_kills"] for one in found)
        report.require(f"{name}, {_where(limit)}: not killed for memory", str(kills), kills == 0)


def _spread(values: Sequence[float]) -> str:
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) < 2 else f"{middle} ({min(values):.2f} … {max(values):.2f})"


def _where(limit: int | None) -> str:
    return "all in memory" if limit is None else f"in {size_name(limit)}"


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--length", type=int, default=32, help="tokens of each prompt (%(default)s)")
    # After that many, Coterie has found out how many of so many streams share a pass.
    parser.add_argument("--settle", type=int, default=48, help="tokens of each stream before (%(default)s)")
    parser.add_argument("--tokens", type=int, default=12, help="tokens of each stream that are timed (%(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for a number of streams (%(default)g)")
    parser.add_argument("--timeout", type=float, default=400.0, help="until a server has begun (%(default)g)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30b-a3b")
    parser.add_argument("--limits", type=float, nargs="*", metavar="GIB", default=[8.0], help="memory cgroups (8)")
    parser.add_argument("--limited-only", action="store_true", help="leave out all in memory")
    parser.add_argument("--no-llama", action="store_true", help="leave out llama-server")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted benchmark has measured")
    parser.add_argument("--llama-source", type=Path, help="a source tree of llama.cpp to use")
    parser.add_argument("--llama-build", type=Path, help="a build directory of llama.cpp to use, or to build in")
    given = parser.parse_args()
    # Killed politely, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))
    if given.quick:
        given.shape, given.limits, given.settle, given.tokens = "small", [0.75], 4, 4
    given.work_dir.mkdir(parents=True, exist_ok=True)
    files, model = Files(given.work_dir, given.shape), FullSizeModel(SHAPES[given.shape])
    if not files.store.exists():
        files.make("store")
    servers: list[Server] = [CoterieServer(files.store, given.threads)]
    report = Report("streams", "Streams beside llama-server", work=given.work_dir, quick=given.quick)
    if not given.no_llama:
        if not files.gguf.exists():
            files.make("gguf")
        llama = build_llama(given.work_dir, source=given.llama_source, build=given.llama_build)
        servers.append(LlamaServer(llama.server, files.gguf, given.threads))
        report.values["llama.cpp"] = llama.version
    limits: list[int | None] = [] if given.limited_only else [None]
    limits += [int(limit * GIB) for limit in given.limits]
    journal = Journal(given.work_dir / f"streams{'-quick' * given.quick}.jsonl", resume=given.resume)
    wait_until_quiet(given.wait_quiet)
    try:
        for limit in limits:
            for number in range(given.rounds):
                for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
                    measure(journal, server, limit, number, model, given)
            add(report, journal, [server.name for server in servers], limit, given)
    except CgroupUnavailable as reason:
        raise SystemExit(f"This benchmark needs a memory cgroup (root, cgroup v1 or v2): {reason}.") from reason
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
