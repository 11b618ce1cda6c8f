"""`coterie bench`: how fast a model runs here, and where the time goes."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli import options as shared
from coterie.cli.console import notes, plain_table, print_json, print_note, print_table, results
from coterie.cli.generation_options import QuietOption
from coterie.cli.opening import import_engine, open_model, opens_model, quiet_terminal
from coterie.cli.progress import count_progress
from coterie.errors import CoterieError
from coterie.files.text import read_prompt
from coterie.spec import format_bytes
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from rich.table import Table

    from coterie.bench import Breakdown, Measurement
    from coterie.generation.opened import OpenModel
    from coterie.planner import Expected, Forecast

JSON_SCHEMA_VERSION = 1

_MEANING = {
    "linear": "products with resident weights",
    "attention": "the rest of attention: rotary, cache, scores",
    "norms": "normalisation",
    "router": "choosing experts",
    "experts": "finding experts and computing them",
    "waiting": "until experts were read",
    "glue": "the rest of the forward pass",
    "sampling": "choosing the token, the generation loop",
}


@opens_model(without=("profile", "warm", "pin", "verify_reads"))
def command(
    model: shared.ModelArgument,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=1, metavar="N", help="Tokens of the prompt.")
    ] = 64,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=3, metavar="N", help="Tokens to generate.")] = 32,
    runs: Annotated[
        int,
        typer.Option("--runs", min=1, metavar="N", help="Generations; the first finds no expert in memory."),
    ] = 2,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            exists=True,
            dir_okay=False,
            readable=True,
            metavar="FILE",
            show_default=False,
            help="Take the prompt from this UTF-8 text, repeated or cut to fit. Default: a text in English.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", show_default=False, help="Draw tokens. Default: take the likeliest."),
    ] = None,
    breakdown: Annotated[
        bool,
        typer.Option("--breakdown", help="Show where the time of a decode step goes; generates twice more."),
    ] = False,
    forecast: Annotated[
        bool,
        typer.Option(
            "--forecast/--no-forecast",
            help="Show beside it what `coterie plan` expects, for which the machine is measured for some seconds.",
        ),
    ] = True,
    *,
    opening: Opening,
    as_json: shared.JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measures prefill, decode steps, hit rate, reads and memory, of a prompt and a fixed number of tokens.

    The first run starts with no expert in memory; the next ones find what the run before has left. A step's time is
    the median, with the quartiles beside it. The last row is the forecast of `coterie plan`, with the experts that fit.
    """
    text = None if file is None else read_prompt(file)
    expecting = _expecting(model, opening, prompt_tokens, new_tokens, quiet=quiet) if forecast else None
    began = time.perf_counter()
    with open_model(model, opening, quiet=quiet) as opened:
        load_s = time.perf_counter() - began
        measured, parts = _run(
            opened, text, prompt_tokens, new_tokens, runs=runs, seed=seed, breakdown=breakdown, quiet=quiet
        )
        name, plan = opened.runtime.source.name, opened.runtime.plan
    expected = None if expecting is None else expecting.with_room_for(measured[-1].capacity)
    if as_json:
        print_json(_as_json(name, load_s, measured, parts, expected))
        return
    budget = "" if plan is None else f" of {format_bytes(plan.budget)}"
    first = measured[0]
    results().print(
        f"{name}: opened in {load_s:.1f} s, {first.threads} threads, prompt {prompt_tokens} tokens, "
        f"{new_tokens} new; room for {format_bytes(first.capacity)} of {format_bytes(first.total_expert_bytes)} "
        f"of experts; the process holds {format_bytes(measured[-1].memory)}{budget}.",
    )
    _print_runs(measured, expected)
    if parts is not None:
        _print_breakdown(parts)


def _run(
    opened: OpenModel,
    text: str | None,
    prompt_tokens: int,
    new_tokens: int,
    *,
    runs: int,
    seed: int | None,
    breakdown: bool,
    quiet: bool,
) -> tuple[list[Measurement], Breakdown | None]:
    from coterie import bench

    prompt = bench.prompt_of(opened.processors.tokenizer, prompt_tokens, bench.TEXT if text is None else text)
    total = (runs + 2 * breakdown) * new_tokens
    with nullcontext(_nothing) if quiet else count_progress("measuring", total) as count:

        def advance(_: int) -> None:
            count()

        measured = [bench.measure(opened.model, prompt, new_tokens, seed=seed, on_token=advance) for _ in range(runs)]
        parts = None
        if breakdown:
            parts = bench.breakdown(opened.model, prompt, new_tokens, seed=seed, on_token=advance)
    return measured, parts


def _expecting(model: str, opening: Opening, prompt_tokens: int, new_tokens: int, *, quiet: bool) -> Forecast | None:
    """The forecast, made before the model is opened and memory is taken; None where it cannot be made."""
    import_engine(quiet=quiet)
    import torch

    from coterie.planner import forecast_for

    if opening.threads is not None:
        torch.set_num_threads(opening.threads)
    try:
        with nullcontext() if quiet else notes().status("measuring the machine"), quiet_terminal(quiet=quiet):
            return forecast_for(
                model,
                context=opening.max_context,
                component=opening.component,
                experts_per_token=opening.experts_per_token,
                eviction=opening.eviction,
                prompt_tokens=prompt_tokens,
                answer_tokens=new_tokens,
                revision=opening.revision,
                offline=opening.offline,
                max_rate=opening.max_rate,
            )
    except CoterieError as error:
        # What is wrong with the model, opening it says next.
        print_note(f"No forecast: {error.message}")
        return None


def _nothing() -> None:
    """Shows nothing."""


def _print_runs(measured: list[Measurement], expected: Expected | None) -> None:
    columns = ("first token", "prefill", "ms per token", "quartiles", "decode", "hit rate", "read per token", "waiting",
               "prefetched")  # fmt: skip
    table = plain_table("run", *columns, right=columns)
    for number, run in enumerate(measured, 1):
        low, high = run.step_quartiles_s
        table.add_row(
            str(number),
            f"{run.prefill_s:.2f} s",
            f"{run.prefill_tokens_per_s:.1f}/s",
            f"{1e3 * run.step_s:.2f}",
            f"{1e3 * low:.2f} … {1e3 * high:.2f}",
            f"{run.decode_tokens_per_s:.1f}/s",
            "–" if run.hit_rate is None else f"{100 * run.hit_rate:.1f} %",
            format_bytes(round(run.bytes_per_token)),
            f"{100 * run.wait_s / run.decode_s:.1f} %",
            "–"
            if run.prefetch_used is None
            else f"{run.prefetched_per_token:.1f}, {100 * run.prefetch_used:.0f} % used{_recalled(run)}",
        )
    if expected is not None:
        _add_forecast(table, expected)
    print_table(table)
    if any(run.left_out_per_token for run in measured):
        left_out = ", ".join(f"{run.left_out_per_token:.1f}" for run in measured)
        print_note(f"--drop-cold left out so many experts per token, run by run: {left_out}.")
    if expected is not None:
        print_note(f"The forecast's hit rate is by {expected.hit_rate.grade}: {expected.hit_rate.basis}.")


def _recalled(run: Measurement) -> str:
    """How much of what had to be read was read early."""
    return "" if run.prefetch_recall is None else f", {100 * run.prefetch_recall:.0f} % of what was missing"


def _add_forecast(table: Table, expected: Expected) -> None:
    """A row of ranges beside what was measured."""
    rate, read, speed = expected.hit_rate.rate, expected.read_per_token, expected.speed
    first = tokens = step = "–"
    if speed is not None:
        first = f"{speed.first_token_s.low:.2f} … {speed.first_token_s.high:.2f} s"
        low, high = speed.tokens_per_second.low, speed.tokens_per_second.high
        tokens, step = f"{low:.1f} … {high:.1f}/s", f"{1e3 / high:.2f} … {1e3 / low:.2f}"
    hits = f"{100 * rate.low:.0f} … {100 * rate.high:.0f} %"
    reads = f"{format_bytes(round(read.low))} … {format_bytes(round(read.high))}"
    table.add_row("forecast", first, "–", step, "–", tokens, hits, reads, "–", "–")


def _print_breakdown(parts: Breakdown) -> None:
    table = plain_table(
        "part", "ms per token", "share", "calls", "what it is", right=("ms per token", "share", "calls")
    )
    for part, seconds in parts.parts.items():
        table.add_row(
            part,
            f"{1e3 * seconds:.2f}",
            f"{100 * seconds / parts.step_s:.1f} %",
            f"{parts.calls[part]:.0f}" if parts.calls[part] else "–",
            _MEANING[part],
        )
    table.add_row("all", f"{1e3 * parts.step_s:.2f}", "100.0 %", "", f"mean of {parts.steps} steps")
    print_table(table)
    print_note(
        f"Router, norms, glue and sampling together: {1e3 * parts.glue_s:.2f} ms per token. "
        f"Timing every module made a step {100 * parts.overhead:.0f} % longer."
    )


def _as_json(
    name: str, load_s: float, measured: list[Measurement], parts: Breakdown | None, expected: Expected | None
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "schema_version": JSON_SCHEMA_VERSION,
        "model": name,
        "load_s": load_s,
        "runs": [
            asdict(run)
            | {
                "prefill_tokens_per_s": run.prefill_tokens_per_s,
                "decode_tokens_per_s": run.decode_tokens_per_s,
            }
            for run in measured
        ],
    }
    if parts is not None:
        value["breakdown"] = asdict(parts) | {"dense_s": parts.dense_s, "glue_s": parts.glue_s}
    if expected is not None:
        value["forecast"] = asdict(expected)
    return value
