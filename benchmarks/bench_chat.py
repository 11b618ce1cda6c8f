"""How long a conversation waits for the first token of an answer, turn by turn.

A turn computes its own tokens, and attends to those before it. So the wait should depend on what is new: that of the
last turn is compared with that of a first turn with as many tokens, which follows it at once. Without reuse it grows
with the conversation; one conversation is held so, too. The models here have no chat template of their own: they get
one that shows each turn as it was said, so that all of an answer is in the next prompt as it was generated.

Each run is a conversation of its own, with other words. One that has been held is kept at once: an interrupted
benchmark goes on with ``--resume``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_kernels import spread
from fullsize.files import Files
from fullsize.model import FullSizeModel
from fullsize.shapes import SHAPES
from fullsize.walk import text_of
from harness.all_experts import read_all_experts
from harness.journal import Journal
from harness.machine import load_average, wait_until_quiet
from harness.options import options
from harness.paired import Timings
from harness.report import Report

MOST = 1.2
"""What the last turn may take of a first turn of its length."""

MARKS = 2
"""Tokens before a turn's own that may be computed with them: the last answer's last one, and what ends it."""

TEMPLATE = """\
{%- for message in messages -%}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}{%- for part in message.content -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
"""

WORDS = "The committee met again in the long room by the river, and heard what each of the envoys had to say about it. "

Message = Callable[[int, int], str]
"""Given the run and the turn, what is said."""


def held(model: Any, message: Message, run: int, given: Any, *, reuse: bool, turns: int) -> dict[str, Any]:
    """A conversation: tokens of the prompts, those that were reused, those of answers, seconds to each first token.

    With reuse, also the seconds of a first turn with as many tokens as the last one computed.
    """
    import coterie
    from coterie.generation.chat_options import ChatOptions
    from coterie.generation.completion import complete
    from coterie.generation.inputs import token_inputs

    processors = coterie.processors(model)
    sampling = coterie.Sampling(max_new_tokens=given.answer, greedy=True)
    shown = ChatOptions(template=str(given.template))
    talk = coterie.Conversation(model, processors, sampling=sampling, options=shown, reuse=reuse)
    done = [talk.ask(message(run, turn)) for turn in range(turns)]
    first = None
    if reuse:
        computed = done[-1].prompt_tokens - done[-1].reused_tokens
        ids = processors.tokenizer(message(run, turns) * 2)["input_ids"][:computed]
        if len(ids) < computed:
            raise AssertionError("a first turn is to be as long as the last one")
        first = complete(model, processors.tokenizer, token_inputs(processors, ids), sampling).prefill_s
    return {
        "prompts": [one.prompt_tokens for one in done],
        "reused": [one.reused_tokens for one in done],
        "answers": [len(one.token_ids) for one in done],
        "waits": [one.prefill_s for one in done],
        "first": first,
        "load": load_average(),
    }


def measure(journal: Journal, model: str | Path, memory: str, message: Message, given: Any) -> None:
    """Holds the conversations that the journal does not have.

    Args:
        journal: Where to.
        model: The model.
        memory: The budget; a share, such as ``100%``, is that of the experts.
        message: What is said.
        given: Of the command line.
    """
    import coterie

    wanted = [(run, True) for run in range(given.runs)] + [(run, False) for run in range(given.without)]
    missing = [one for one in wanted if journal.of(key_of(model, memory, *one, given)) is None]
    if not missing:
        return
    budget: dict[str, Any] = {"expert_memory": memory} if memory.endswith("%") else {"memory": memory}
    with coterie.load(model, max_context=given.max_context, **budget) as opened:
        if memory == "100%":
            read_all_experts(opened.coterie)
        # Memory is used for the first time, and kernels are chosen.
        held(opened, message, -1, given, reuse=True, turns=2)
        for run, reuse in missing:
            found = held(opened, message, run, given, reuse=reuse, turns=given.turns)
            journal.keep(key_of(model, memory, run, reuse, given), found)
            print(
                f"{memory}, run {run + 1}: the last turn waits {found['waits'][-1]:.2f} s, "
                + (f"a first one {found['first']:.2f} s" if reuse else "without reuse"),
                file=sys.stderr,
                flush=True,
            )


def key_of(model: str | Path, memory: str, run: int, reuse: bool, given: Any) -> dict[str, object]:
    """What a conversation is known by."""
    settings = {name: getattr(given, name) for name in ("turns", "words", "answer", "max_context")}
    return {"model": Path(model).name, "memory": memory, "run": run, "reuse": reuse, **settings}


def add(report: Report, journal: Journal, model: str | Path, memory: str, given: Any) -> None:
    """Adds the tables of one budget, and what is required."""
    found = {
        reuse: [journal.of(key_of(model, memory, run, reuse, given)) for run in range(runs)]
        for reuse, runs in ((True, given.runs), (False, given.without))
    }
    where = {"100%": "all experts in memory"}.get(memory, f"{memory} of memory")
    runs, without = found[True], found[False]
    table = report.table(
        f"{Path(model).name}, {where}, answers of {given.answer} tokens, {given.runs} conversations, seconds to the "
        f"first token (quartiles); {given.without} of them without reuse:",
        ("turn", "tokens so far", "of them computed", "seconds", "without reuse"),
    )
    for turn in range(given.turns):
        one = runs[0]
        table.rows.append(
            (
                str(turn + 1),
                str(one["prompts"][turn]),
                str(one["prompts"][turn] - one["reused"][turn]),
                _seconds([run["waits"][turn] for run in runs]),
                _seconds([run["waits"][turn] for run in without]) if without else "–",
            )
        )
    last, what = given.turns - 1, f"{where}, turn {given.turns}"
    pairs = Timings({"turn": [run["waits"][-1] for run in runs], "first": [run["first"] for run in runs]})
    ratios = Timings({"ratio": [a / b for a, b in zip(pairs.rounds["turn"], pairs.rounds["first"], strict=True)]})
    computed = [run["prompts"][last] - run["reused"][last] for run in runs]
    # What was there before it are the last prompt and its answer.
    own = [run["prompts"][last] - run["prompts"][last - 1] - run["answers"][last - 1] for run in runs]
    beside = report.table(
        f"Turn {given.turns} beside a first turn of as many tokens, {where}:",
        ("its own tokens", "computed", f"turn {given.turns}, s", "first turn, s", "ratio (quartiles)"),
    )
    cells = ("–".join(map(str, sorted({min(counts), max(counts)}))) for counts in (own, computed))
    beside.rows.append((*cells, *(spread(pairs, name, 1) for name in ("turn", "first")), spread(ratios, "ratio", 1)))
    report.values[where] = {"with reuse": runs, "without": without}
    more = max(a - b for a, b in zip(computed, own, strict=True))
    report.require(f"{what}: computes its own tokens, and at most {MARKS} more", f"{more} more", more <= MARKS)
    if not given.quick:
        middle = ratios.median("ratio")
        report.require(f"{what}: waits at most {MOST} × a first turn of that length", f"{middle:.2f} ×", middle <= MOST)


def _seconds(values: list[float]) -> str:
    return spread(Timings({"s": values}), "s", 1)


def main() -> int:
    """Measures and reports."""
    parser = options(__doc__)
    parser.add_argument("--model", help="a store or a checkpoint, or bundled, instead of the model of full size")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="of the full-size model (%(default)s)")
    parser.add_argument("--memory", nargs="+", default=["100%", "8GiB"], help="budgets (100%% 8GiB)")
    parser.add_argument("--max-context", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--words", type=int, default=48, help="about the tokens of a turn (%(default)s)")
    parser.add_argument("--answer", type=int, default=8, help="tokens of an answer (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="conversations (%(default)s)")
    parser.add_argument("--without", type=int, default=1, help="conversations without reuse (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted benchmark has measured")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "The experts have")
    given.work_dir.mkdir(parents=True, exist_ok=True)
    given.template = given.work_dir / "turns-as-said.jinja"
    given.template.write_text(TEMPLATE)
    wait_until_quiet(given.wait_quiet)
    report = Report("chat", "Waiting for a turn", work=given.work_dir, quick=given.quick)

    def spoken(run: int, turn: int) -> str:
        return f"{run + 1}, {turn}. " + WORDS * max(1, given.words // 24)

    def walked(run: int, turn: int) -> str:
        first = ((run + 1) * 2 * given.turns + turn) * given.words
        return "".join(map(text_of, walk.tokens(first, given.words)))

    message, model = spoken, given.model or "bundled"
    if given.quick:
        given.memory, given.runs = ["100%", "30%"], 2
    elif not given.model:
        files = Files(given.work_dir, given.shape)
        if not files.store.exists():
            files.make("store")
        # Its tokenizer knows other words.
        walk, message, model = FullSizeModel(SHAPES[given.shape]).walk, walked, str(files.store)
    journal = Journal(given.work_dir / f"chat{'-quick' * given.quick}.jsonl", resume=given.resume)
    for memory in given.memory:
        measure(journal, model, memory, message, given)
        add(report, journal, model, memory, given)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
