"""Several sequences generated side by side in one process, against one of them by itself.

Each contestant computes so many new tokens of every sequence, with the loop that a server runs:

- *one* is one sequence by itself;
- *turns* is all sequences one after the other, a forward pass for each token;
- *together* is all sequences as they are generated side by side: as many in a pass as were found to make a token
  cheapest. That is found out before anything is timed, in some tokens of every sequence.

Tokens are drawn at random: sequences that say the same share more experts. All begin with a prompt of their own, which
is computed once and kept, so that contexts are equally long whenever they are timed. Before that, a few tokens of the
longest list of sequences are generated greedily, side by side and each by itself, and their logits are compared to the
bit.

A number of sequences that has been measured is kept at once: an interrupted benchmark goes on with ``--resume``.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench_kernels import spread
from fullsize.files import Files
from harness.all_experts import read_all_experts
from harness.journal import Journal
from harness.machine import load_average, wait_until_quiet
from harness.options import options
from harness.paired import Timings, interleave
from harness.report import Report

COMPARED = 4
"""Tokens of each sequence whose logits are compared with what it is alone."""

SCATTER = 0.97
"""What of the speed of one sequence, or of taking turns, counts as not below it: they are not timed at one moment."""


class Streams:
    """Sequences of one model that begin with prompts of their own, anew for each measurement.

    Args:
        model: The model.
        prompts: Token ids [rows, T]. All but their last token is kept once it has been computed.
        most: New tokens that any of them may come to.
    """

    def __init__(self, model: Any, prompts: torch.Tensor, most: int) -> None:
        from coterie.generation.prefixes import Prefixes

        self._model = model
        self._prompts = prompts
        self._most = most
        self._prefixes = Prefixes(1 << 40, piece=prompts.shape[1] - 1)
        self._steps: dict[tuple[int, bool], Any] = {}
        self._seeds = itertools.count()

    def settled(self, rows: int, settle: int, tokens: int, *, apart: bool = False) -> float:
        """Seconds of a new token of the first so many sequences, each of which gets so many.

        Args:
            rows: Sequences.
            settle: New tokens of each before, which are not timed: what was computed before has left its own experts
                in memory.
            tokens: New tokens of each.
            apart: Whether each has passes of its own.
        """
        with self._going(rows, apart=apart) as (steps, sequences):
            _new_tokens(steps, sequences, settle)
            began = time.perf_counter()
            made = _new_tokens(steps, sequences, tokens)
            return (time.perf_counter() - began) / made

    def same_as_alone(self) -> bool:
        """Whether some greedy steps of all sequences side by side have the logits of each alone."""
        from coterie.generation.steps import Steps

        found: list[list[list[torch.Tensor]]] = []
        for together in (True, False):
            logits: list[list[torch.Tensor]] = [[] for _ in self._prompts]
            one_by_one = [[one] for one in range(len(logits))]
            for rows in [list(range(len(logits)))] if together else one_by_one:
                steps = Steps()
                for row in rows:
                    steps.add(self._begun(row, COMPARED, None, logits[row]))
                while steps.going:
                    steps.step()
            found.append(logits)
        pairs = zip(*found, strict=True)
        return all(len(a) == len(b) == COMPARED and all(map(torch.equal, a, b)) for a, b in pairs)

    @contextmanager
    def _going(self, rows: int, *, apart: bool) -> Iterator[tuple[Any, list[Any]]]:
        from coterie.generation.steps import Steps

        # What was found out about numbers of rows stays.
        steps = self._steps.setdefault((rows, apart), Steps(most_rows=1 if apart else None))
        sequences = [self._begun(row, self._most, next(self._seeds)) for row in range(rows)]
        for one in sequences:
            steps.add(one)
        yield steps, sequences
        for one in sequences:
            one.check()
            if one.ended:
                raise AssertionError("a sequence was to go on")
            steps.remove(one)

    def _begun(self, row: int, most: int, seed: int | None, noted: list[torch.Tensor] | None = None) -> Any:
        """A sequence that has its first token; the tokens are drawn at random, or with no seed the likeliest."""
        from coterie.generation.sequence import Sequence as Generated
        from coterie.hf.generation_steps import last_logits, prepare

        prompt = self._prompts[row : row + 1]
        prepared = prepare(self._model, input_ids=prompt, min_new_tokens=most, max_new_tokens=most, do_sample=False)
        choose: Callable[[torch.Tensor], torch.Tensor] | None = None
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)

            def choose(scores: torch.Tensor) -> torch.Tensor:
                return torch.randint(16, scores.shape[-1], (1,), generator=generator)

        keep = None if noted is None else lambda outputs: noted.append(last_logits(outputs, prompt))
        begun = Generated(
            prepared, chooser=choose, keep=keep, piece=self._prefixes.piece, keeper=self._prefixes.begin(prepared)
        )
        with torch.no_grad():
            while begun.reading:
                begun.take(begun.run())
        return begun


def _new_tokens(steps: Any, sequences: Sequence[Any], tokens: int) -> int:
    """Steps until all sequences together have so many new tokens for each of them; returns how many they have got."""
    first = done = sum(len(one.new_ids) for one in sequences)
    while steps.going and done < first + len(sequences) * tokens:
        steps.step()
        done = sum(len(one.new_ids) for one in sequences)
    return done - first


def measure(journal: Journal, store: str | Path, memory: str, given: Any) -> None:
    """Measures what sequences of a model take in so much memory, as far as the journal does not say it.

    Args:
        journal: Where to.
        store: The model.
        memory: The budget; a share, such as ``100%``, is that of the experts.
        given: Of the command line.
    """
    from coterie.engine import load
    from coterie.integration import rows_together

    missing = [count for count in given.streams if journal.of(key_of(store, memory, count, given)) is None]
    if not missing:
        return
    # A round of turns that has begun is finished.
    most, rows = max(given.trial, given.settle + given.tokens) + 4, max(given.streams)
    # Room for keys and values is counted twice over; what is kept of the prompts needs it once.
    context = rows * (given.length + 1 + most) + rows * given.length // 2
    options: dict[str, Any] = {"expert_memory": memory} if memory.endswith("%") else {"memory": memory}
    with load(store, max_context=context, **options) as model:
        if memory == "100%":
            read_all_experts(model.coterie)
        vocabulary = model.config.get_text_config().vocab_size
        draw = torch.Generator().manual_seed(0)
        streams = Streams(model, torch.randint(16, vocabulary, (rows, given.length + 1), generator=draw), most)
        # Before anything is timed, as it computes the prompts.
        same = streams.same_as_alone()
        for count in missing:
            contestants = {"one": partial(streams.settled, 1, given.settle, given.tokens, apart=True)}
            if given.turns:
                contestants["turns"] = partial(streams.settled, count, given.settle, given.tokens, apart=True)
            contestants["together"] = partial(streams.settled, count, given.settle, given.tokens)
            began = time.perf_counter()
            streams.settled(count, given.trial - 1, 1)
            timings = interleave(contestants, given.rounds)
            found = {
                "same": same,
                "load": load_average(),
                "name": model.coterie.source.name,
                "rows": rows_together(model),
                "rounds": timings.rounds,
            }
            journal.keep(key_of(store, memory, count, given), found)
            print(
                f"{memory}, {count} sequences: {timings.ratio('one', 'together'):.2f} of one, "
                f"{time.perf_counter() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )


def key_of(store: str | Path, memory: str, count: int, given: Any) -> dict[str, object]:
    """What a row of the table is of."""
    settings = {name: getattr(given, name) for name in ("length", "tokens", "settle", "trial", "rounds", "turns")}
    return {"model": Path(store).name, "memory": memory, "streams": count, "most": max(given.streams), **settings}


def add(report: Report, journal: Journal, store: str | Path, memory: str, least: dict[int, float], given: Any) -> None:
    """Adds a table and its requirements.

    Args:
        report: Where to.
        journal: What was measured.
        store: The model.
        memory: The budget.
        least: Sequences → the throughput over that of one that is required.
        given: Of the command line.
    """
    rows = {count: journal.of(key_of(store, memory, count, given)) for count in given.streams}
    where = {"100%": "all experts in memory"}.get(memory, f"{memory} of memory")
    if memory.endswith("%") and memory != "100%":
        where = f"{memory} of the experts in memory"
    first = next(iter(rows.values()))
    same = all(row["same"] for row in rows.values())
    report.require(
        f"{where}: {max(given.streams)} side by side have the logits that each has alone", "yes" if same else "no", same
    )
    shown = ["one", "turns", "together"] if given.turns else ["one", "together"]
    table = report.table(
        f"{first['name']}, {where}, at most {first['rows']} sequences in a pass, {given.length} tokens of context; "
        f"{given.rounds} interleaved rounds of {given.tokens} tokens of each, ms for a token (quartiles):",
        (
            "sequences",
            *shown,
            "tok/s together",
            "over one (quartiles)",
            *(["over turns (quartiles)"] if given.turns else []),
        ),
    )
    for count, row in rows.items():
        timings = Timings(row["rounds"])
        over = {name: _ratios(timings, name) for name in shown[:-1]}
        table.rows.append(
            (
                str(count),
                *(spread(timings, name, 1e3) for name in shown),
                f"{1 / timings.median('together'):.1f}",
                *(spread(ratios, "ratio", 1) for ratios in over.values()),
            )
        )
        what = f"{where}, {count} sequences"
        report.values[what] = {"rounds": timings.rounds, "load average": row["load"]}
        if given.quick:
            continue
        for name, ratios in over.items():
            at_least, middle = least.get(count, 1.0) if name == "one" else 1.0, ratios.median("ratio")
            beside = "one" if name == "one" else "taking turns"
            if at_least > 1:
                report.require(f"{what}: at least {at_least:g} × {beside}", f"{middle:.2f}", middle >= at_least)
            else:
                report.require(f"{what}: not below {beside} (≥ {SCATTER})", f"{middle:.2f}", middle >= SCATTER)


def _ratios(timings: Timings, name: str) -> Timings:
    """How many times as fast together is, round by round."""
    pairs = zip(timings.rounds[name], timings.rounds["together"], strict=True)
    return Timings({"ratio": [other / together for other, together in pairs]})


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--length", type=int, default=256, help="tokens of context of each sequence (%(default)s)")
    parser.add_argument("--tokens", type=int, default=8, help="new tokens of each sequence in a round (%(default)s)")
    parser.add_argument("--settle", type=int, default=4, help="new tokens before, which are not timed (%(default)s)")
    parser.add_argument("--trial", type=int, default=64, help="new tokens in which numbers are tried (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-turns", dest="turns", action="store_false", help="leave out taking turns")
    parser.add_argument("--memory", nargs="+", default=["100%", "8GiB"], help="budgets (100%% 8GiB)")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="of the full-size model (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted benchmark has measured")
    given = parser.parse_args()
    given.work_dir.mkdir(parents=True, exist_ok=True)
    wait_until_quiet(given.wait_quiet)
    report = Report("batching", "Sequences side by side", work=given.work_dir, quick=given.quick)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        store, required = Files(given.work_dir, given.shape).store, {"100%": {8: 1.6}, "8GiB": {8: 1.3}}
        if given.quick:
            from coterie.extraction import extract

            given.length, given.tokens, given.settle, given.trial, given.rounds = 16, 3, 1, 8, 2
            given.memory, store = ["100%", "30%"], Path(folder) / "bundled"
            extract("bundled", store, scheme="int4", dense_scheme="int4")
        elif not store.exists():
            Files(given.work_dir, given.shape).make("store")
        journal = Journal(given.work_dir / f"batching{'-quick' * given.quick}.jsonl", resume=given.resume)
        for memory in given.memory:
            measure(journal, store, memory, given)
            add(report, journal, store, memory, required.get(memory, {}), given)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
