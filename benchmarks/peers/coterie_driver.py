"""Opens a store with Coterie, generates greedily, and prints each token's text at once: a process that is measured."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullsize.walk import TOKEN_LENGTH, text_of, token_of
from harness.all_experts import read_all_experts
from peers.costs import measured_costs

if TYPE_CHECKING:
    import torch


_POLL_S, _STILL_S = 0.25, 3.0
"""How often the cache's memory is looked at, and after how long without more of it there will be no more."""


class Printer:
    """A transformers streamer that prints tokens and notes when they came.

    Args:
        calls: What is called after how many tokens.
    """

    def __init__(self, calls: Mapping[int, Callable[[], None]] | None = None) -> None:
        self.times: list[float] = []
        self._calls = calls or {}

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt first, then with every token."""
        self.times.append(time.perf_counter())
        if len(self.times) > 1:
            print(text_of(int(value)), end="", flush=True)
        if call := self._calls.get(len(self.times) - 1):
            call()

    def end(self) -> None:
        """Called once at the end."""


class Recorder:
    """An observer that keeps how many experts each layer of each decode step found resident, and how many not.

    Args:
        runtime: What it observes.

    Attributes:
        steps: The decode steps, as :class:`peers.ideal.Served` takes them.
    """

    def __init__(self, runtime: Any) -> None:
        self.steps: list[dict[str, Any]] = []
        self._runtime = runtime
        self._decoding = False
        self._new_slots = 0

    def on_event(self, event: Any) -> None:
        """Called for every event."""
        match type(event).__name__:
            case "StepStarted":
                self.end_step()
                self._decoding = event.phase == "decode"
                if self._decoding:
                    self.steps.append({"layers": []})
            case "ExpertsServed" if self._decoding:
                self.steps[-1]["layers"].append((event.hits, event.misses))

    def end_step(self) -> None:
        """The step that was under way, if any, is over."""
        new_slots = self._runtime.cache.stats().new_slots
        if self._decoding:
            self.steps[-1]["new"] = new_slots - self._new_slots
        self._new_slots = new_slots


def options(doc: str | None) -> argparse.ArgumentParser:
    """What every driver takes."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", required=True, help="text of the prompt, three letters for each token")
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--memory", type=int, help="bytes")
    parser.add_argument("--report", type=Path, required=True, help="file for figures")
    return parser


def ids_of(text: str) -> list[int]:
    """The prompt's tokens."""
    return [token_of(text[at : at + TOKEN_LENGTH]) for at in range(0, len(text), TOKEN_LENGTH)]


def wait_for_memory(runtime: Any) -> None:
    """Until the cache has all the memory that it is owed, which it gets while nothing is asked of it."""
    stats, since = runtime.cache.stats(), time.perf_counter()
    while stats.committed_bytes < stats.capacity and time.perf_counter() - since < _STILL_S:
        time.sleep(_POLL_S)
        now = runtime.cache.stats()
        if now.committed_bytes > stats.committed_bytes:
            since = time.perf_counter()
        stats = now


def generate(model: Any, ids: list[int], new_tokens: int, printer: Printer | None = None) -> dict[str, float]:
    """Generates greedily while printing; returns what the times were."""
    import torch

    prompt, printer = torch.tensor([ids]), printer or Printer()
    with torch.inference_mode():
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            streamer=printer,
        )
    times = printer.times
    return {"prompt_tokens": len(ids), "prefill_s": times[1] - times[0], "decode_s": times[-1] - times[1]}


def main() -> int:
    """Runs what the command line describes."""
    began = time.perf_counter()
    parser = options(__doc__)
    parser.add_argument("--max-context", type=int, required=True)
    parser.add_argument("--warm", action="store_true", help="read all experts first")
    parser.add_argument("--trace", type=Path, help="record the routing there")
    parser.add_argument("--served", action="store_true", help="report what each layer of each decode step found")
    parser.add_argument("--costs", action="store_true", help="measure what a step's parts and reads take")
    parser.add_argument("--prefetch", help="other than by default")
    parser.add_argument("--drop-cold", type=float, help="leave out light experts that are not in memory")
    parser.add_argument("--grow-after", type=int, help="tokens after which to wait until the cache has its memory")
    parser.add_argument("--memory-after", type=int, help="tokens after which to note how much memory the cache has")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "The experts have")

    import coterie
    from coterie.engine.quiet import quiet_libraries

    imported = time.perf_counter()
    with quiet_libraries():
        model = coterie.load(
            given.model,
            memory=given.memory,
            max_context=given.max_context,
            threads=given.threads,
            drop_cold=given.drop_cold,
            **({"prefetch": given.prefetch} if given.prefetch else {}),
        )
    runtime = model.coterie
    loaded = time.perf_counter()
    if given.warm:
        read_all_experts(runtime)
    warmed = time.perf_counter()
    ids = ids_of(given.prompt)
    recorder = Recorder(runtime)
    calls: dict[int, Callable[[], None]] = {}
    noted: dict[str, int] = {}
    if given.grow_after is not None:
        calls[given.grow_after] = lambda: wait_for_memory(runtime)
    if given.memory_after is not None:
        calls[given.memory_after] = lambda: noted.update(memory_after=runtime.cache.stats().committed_bytes)
    if given.served:
        runtime.add_observer(recorder)
    with runtime.record_trace(given.trace) if given.trace is not None else nullcontext():
        times = generate(model, ids, given.new_tokens, Printer(calls))
    if given.served:
        runtime.remove_observer(recorder)
        recorder.end_step()
    stats = runtime.stats()
    own: dict[str, object] = (
        times
        | noted
        | {
            "import_s": imported - began,
            "load_s": loaded - imported,
            "warm_s": warmed - loaded,
            "capacity": stats.capacity,
            "total_expert_bytes": stats.total_expert_bytes,
            "expert_bytes": max(runtime.source.record_nbytes.values()),
            "decode_hit_rate": stats.total.decode_hit_rate,
            "bytes_read": stats.total.bytes_read,
            "wait_s": stats.total.wait_s,
            "left_out": stats.total.left_out,
            "bytes_not_read": stats.total.bytes_not_read,
            "committed_bytes": runtime.cache.stats().committed_bytes,
            "prefetch_issued": stats.prefetch_issued,
            "prefetch_used": stats.prefetch_used,
            "prefetch_in_time": stats.prefetch_in_time,
            "prefetch_verdicts": dict(stats.prefetch_verdicts),
        }
    )
    if given.served:
        own["served"] = recorder.steps
    if given.costs:
        own |= measured_costs(model, ids, given.model)
    given.report.write_text(json.dumps(own))
    runtime.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
