"""Several sequences generated side by side in one process, against one of them by itself.

Each contestant computes so many new tokens of every sequence, with the loop that a server runs:

- *one* is one sequence by itself;
- *turns* is all sequences one after the other, a forward pass for each token;
- *together* is all sequences as they are generated side by side: as many in a pass as were found to make a token
  cheapest. While that is being found out, some passes are not the cheapest; that is in the figures, too.

Tokens are drawn at random: sequences that say the same share more experts. Before that, a few tokens of the longest
list of sequences are generated greedily, side by side and each by itself, and their logits are compared to the bit.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench_kernels import spread
from fullsize.files import Files
from harness.machine import wait_until_quiet
from harness.options import options
from harness.paired import interleave
from harness.report import Report, Table

COMPARED = 4
"""Tokens of each sequence whose logits are compared with what it is alone."""


class Streams:
    """Sequences of one model that go on for as long as they are stepped.

    Args:
        model: The model.
        prompts: Token ids [rows, T].
        most: New tokens that any of them may come to.
    """

    def __init__(self, model: Any, prompts: torch.Tensor, most: int) -> None:
        self._sequences = [_sequence(model, prompt[None], most, seed) for seed, prompt in enumerate(prompts)]
        self._steps: dict[tuple[int, bool], Any] = {}
        warm = self._of(len(prompts), apart=True)
        for _ in prompts:
            warm.step()

    def seconds(self, rows: int, tokens: int, *, apart: bool = False) -> float:
        """Seconds of a new token of the first so many sequences, each of which gets so many.

        Args:
            rows: Sequences.
            tokens: New tokens of each.
            apart: Whether each has passes of its own.
        """
        steps, sequences = self._of(rows, apart=apart), self._sequences[:rows]
        wanted = sum(len(one.new_ids) for one in sequences) + rows * tokens
        began = time.perf_counter()
        while steps.going and sum(len(one.new_ids) for one in sequences) < wanted:
            steps.step()
        took = time.perf_counter() - began
        for one in sequences:
            one.check()
            if one.ended:
                raise AssertionError("a sequence was to go on")
        return took / (rows * tokens)

    def _of(self, rows: int, *, apart: bool) -> Any:
        from coterie.generation.steps import Steps

        found = self._steps.get((rows, apart))
        if found is None:
            found = self._steps[rows, apart] = Steps(most_rows=1 if apart else None)
            for one in self._sequences[:rows]:
                found.add(one)
        return found


def _sequence(model: Any, prompt: torch.Tensor, most: int, seed: int | None, keep: Any = None) -> Any:
    """A sequence whose tokens are drawn at random; greedy without a seed."""
    from coterie.generation.sequence import Sequence as Generated
    from coterie.hf.generation_steps import prepare

    prepared = prepare(model, input_ids=prompt, min_new_tokens=most, max_new_tokens=most, do_sample=False)
    choose = None
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)

        def choose(scores: torch.Tensor) -> torch.Tensor:
            return torch.randint(16, scores.shape[-1], (1,), generator=generator)

    return Generated(prepared, chooser=choose, keep=keep)


def same_as_alone(model: Any, prompts: torch.Tensor) -> bool:
    """Whether some greedy steps of sequences side by side have the logits of each alone."""
    from coterie.generation.steps import Steps, generated
    from coterie.hf.generation_steps import last_logits

    def noting(prompt: torch.Tensor, noted: list[torch.Tensor]) -> Callable[[Any], None]:
        return lambda outputs: noted.append(last_logits(outputs, prompt))

    found: list[list[list[torch.Tensor]]] = []
    for together in (True, False):
        logits: list[list[torch.Tensor]] = [[] for _ in prompts]
        waiting = deque(
            _sequence(model, prompt[None], COMPARED, None, noting(prompt[None], noted))
            for prompt, noted in zip(prompts, logits, strict=True)
        )
        steps = Steps()
        while waiting:
            steps.add(waiting.popleft()) if together else generated(waiting.popleft())
        while steps.going:
            steps.step()
        found.append(logits)
    pairs = zip(*found, strict=True)
    return all(len(a) == len(b) == COMPARED and all(map(torch.equal, a, b)) for a, b in pairs)


def measure(
    report: Report, store: str | Path, counts: Sequence[int], memory: str, least: dict[int, float], args: Any
) -> None:
    """Adds what sequences of a model take in so much memory.

    Args:
        report: Where to.
        store: The model.
        counts: Sequences.
        memory: The budget; ``100%`` for all experts in memory.
        least: Sequences → the throughput over that of one that is required.
        args: Of the command line.
    """
    from coterie.engine import load
    from coterie.integration import rows_together

    most = 3 * args.rounds * len(counts) * (args.tokens + args.settle) + 2
    context = max(counts) * (args.length + most)
    options: dict[str, Any] = {"expert_memory": memory} if memory.endswith("%") else {"memory": memory}
    where = "all experts in memory" if memory == "100%" else f"{memory} of memory"
    with load(store, max_context=context, **options) as model:
        name = model.coterie.source.name
        vocabulary = model.config.get_text_config().vocab_size
        prompts = torch.randint(16, vocabulary, (max(counts), args.length), generator=torch.Generator().manual_seed(0))
        same = same_as_alone(model, prompts)
        report.require(f"{where}: each has the logits that it has alone", "yes" if same else "no", same)
        streams = Streams(model, prompts, most)
        table = report.table(
            f"{name}, {where}, {rows_together(model)} rows of a pass at most, {args.length} tokens of context; "
            f"{args.rounds} interleaved rounds of {args.tokens} tokens:",
            ("sequences", "one, ms", "turns, ms", "together, ms", "tok/s", "together / one", "together / turns"),
        )
        for count in counts:
            _measure_count(report, table, streams, count, f"{where}, {count} sequences", least.get(count, 1.0), args)


def _measure_count(
    report: Report, table: Table, streams: Streams, count: int, what: str, least: float, args: Any
) -> None:
    def settled(rows: int, *, apart: bool = False) -> float:
        # What the contestant before has left in memory is its own.
        streams.seconds(rows, args.settle, apart=apart)
        return streams.seconds(rows, args.tokens, apart=apart)

    contestants = {
        "one": partial(settled, 1, apart=True),
        "turns": partial(settled, count, apart=True),
        "together": partial(settled, count),
    }
    timings = interleave(contestants, args.rounds)
    over_one, over_turns = timings.ratio("one", "together"), timings.ratio("turns", "together")
    cells = [spread(timings, name, 1e3) for name in contestants]
    speed = f"{1 / timings.median('together'):.1f}"
    table.rows.append((str(count), *cells, speed, f"{over_one:.2f}", f"{over_turns:.2f}"))
    report.values[what] = timings.rounds
    if not args.quick:
        # A single sequence is its own measure.
        report.require(f"{what}: throughput over one ≥ {least:g}", f"{over_one:.2f}", over_one >= least - 0.03)
        report.require(f"{what}: not below taking turns", f"{over_turns:.2f}", over_turns >= 0.97)


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--length", type=int, default=256, help="tokens of context of each sequence (%(default)s)")
    parser.add_argument("--tokens", type=int, default=12, help="new tokens of each sequence in a round (%(default)s)")
    parser.add_argument("--settle", type=int, default=4, help="new tokens before, which are not timed (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", nargs="+", default=["100%", "8GiB"], help="budgets (%(default)s)")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="of the full-size model (%(default)s)")
    given = parser.parse_args()
    wait_until_quiet(given.wait_quiet)
    report = Report("batching", "Sequences side by side", work=given.work_dir.parent, quick=given.quick)
    torch.manual_seed(0)
    if given.quick:
        given.length, given.tokens, given.settle, given.rounds = 16, 3, 1, 2
        with tempfile.TemporaryDirectory() as folder:
            from coterie.extraction import extract

            extract("bundled", Path(folder) / "bundled", scheme="int4", dense_scheme="int4")
            for memory in ("100%", "30%"):
                measure(report, Path(folder) / "bundled", given.streams, memory, {}, given)
    else:
        files = Files(given.work_dir, given.shape)
        if not files.store.exists():
            files.make("store")
        for memory in given.memory:
            measure(report, files.store, given.streams, memory, {8: 1.6 if memory == "100%" else 1.3}, given)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
