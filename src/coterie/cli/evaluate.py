"""`coterie evaluate`: perplexity of a model, and how far it is from the full one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.console import notes, plain_table, print_json, print_note, print_table, results
from coterie.cli.continuations import print_continuations, print_exact_match
from coterie.cli.estimates import calibrated_on, value_and_interval, value_and_reach
from coterie.cli.evaluation_options import ContextOption, LimitOption, ReferenceOption, StrideOption
from coterie.cli.files import write_text_file
from coterie.cli.generation_options import AdaptExpertsOption, QuietOption, check_adaptation
from coterie.cli.material import gather_material
from coterie.cli.opening import import_engine, opens_model, quiet_terminal
from coterie.cli.ray_messages import without_ray_messages
from coterie.cluster.spreading import check_spreading
from coterie.errors import UsageError
from coterie.files.replacing import check_writable
from coterie.files.text import check_text
from coterie.spec import format_bytes
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from collections.abc import Callable

    from coterie.evaluate import Evaluation, EvaluationProgress, Quality, Reads

_PLAIN_PROGRESS_SECONDS = 10.0


@opens_model(without=("prefetch", "profile", "warm", "pin", "max_context"))
def command(
    model: shared.ModelArgument,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", "-t", metavar="FILE", show_default=False, help="A UTF-8 text; may be given several times."
        ),
    ] = None,
    against: Annotated[
        str | None,
        shared.against_option(
            "Compare with this model: the lossless one with all experts. Without it: perplexity alone."
        ),
    ] = None,
    reference: ReferenceOption = None,
    context: ContextOption = None,
    stride: StrideOption = None,
    limit: LimitOption = None,
    continuations: Annotated[
        int | None,
        typer.Option(
            "--continuations",
            min=1,
            metavar="N",
            show_default=False,
            help="Continue N prompts of each text greedily with both models, and compare: BLEU, chrF, equal tokens, "
            "and the texts side by side. Needs --against and sacrebleu.",
        ),
    ] = None,
    continuation_tokens: Annotated[
        int | None,
        typer.Option(
            "--continuation-tokens",
            min=1,
            metavar="TOKENS",
            show_default=False,
            help="The most new tokens of each continuation. Default: 64.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--prompt-tokens",
            min=1,
            metavar="TOKENS",
            show_default=False,
            help="Tokens of each prompt that is continued. Default: 64.",
        ),
    ] = None,
    exact_match: Annotated[
        list[Path] | None,
        typer.Option(
            "--exact-match",
            metavar="FILE",
            show_default=False,
            help="Questions about sounds, pictures or texts with their right answers, as JSON lines such as "
            '{"audio": "bird.wav", "text": "bird"}: how many are answered rightly, to the letter. May be given several '
            "times, with or without --text.",
        ),
    ] = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option(
            "--answer-tokens",
            min=1,
            metavar="TOKENS",
            show_default=False,
            help="The most tokens of an answer to such a question, or to a sound or picture. Default: 32.",
        ),
    ] = None,
    speech: Annotated[
        list[str] | None,
        typer.Option(
            "--speech",
            metavar="[DOMAIN=]PATH",
            show_default=False,
            help="With --against: sound files, a directory or a pattern. The full model answers each, and both predict "
            "its answer. May be given several times.",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="[DOMAIN=]PATH", show_default=False, help="Pictures, likewise."),
    ] = None,
    *,
    opening: Opening,
    ray: shared.RayOption = None,
    adapt_experts: AdaptExpertsOption = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            dir_okay=False,
            metavar="FILE",
            show_default=False,
            help="Keep the scores of finished windows, continuations and answers in this file; an interrupted "
            "evaluation goes on from it.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", dir_okay=False, metavar="FILE", show_default=False, help="Write the result as JSON too."
        ),
    ] = None,
    as_json: shared.JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measures how well a model predicts texts, and what a lossy scheme or a partial store loses.

    With --against both models are open at once: --memory is the ceiling for both together, --expert-memory sizes the
    cache of each. --missing, --experts-per-token, --drop-cold, --adapt-experts, --source and --revision are for MODEL
    alone. With --drop-cold tokens are computed one by one, as in generation, and it is told what was read for them.
    With --continuations both models also continue prompts from the texts, always with the most probable token.
    Intervals are 95 % confidence intervals for more text of the same kinds; docs/evaluate.md says what each figure
    means.

    With --ray each worker opens the models and computes some of the windows; the figures are the same as without.

    Ctrl-C ends it with exit code 130; with --resume the same command goes on where it was.
    """
    check_adaptation(adapt_experts)
    if ray is not None:
        check_spreading(opening)
    if reference is not None and against is None:
        raise UsageError("--reference keeps the logits of the full model, and none is named.", advice="Add --against.")
    if continuations is not None and against is None:
        raise UsageError(
            "--continuations are compared with the full model's, and none is named.", advice="Add --against."
        )
    if continuations is None and (continuation_tokens is not None or prompt_tokens is not None):
        raise UsageError(
            "Nothing is continued: --continuation-tokens and --prompt-tokens have no effect.",
            advice="Add --continuations N.",
        )
    if output is not None:
        check_writable(output)
    if resume is not None:
        check_writable(resume, appended=True)
    if (speech or images) and against is None:
        raise UsageError(
            "--speech and --images are compared by what the full model says of them, and none is named.",
            advice="Add --against.",
        )
    if not text and not exact_match and not speech and not images:
        raise UsageError(
            "There is nothing to evaluate with.",
            advice="Add --text FILE, --exact-match FILE, or --speech or --images with --against.",
        )
    for path in (*(text or ()), *(exact_match or ())):
        check_text(path)
    material = gather_material(None, speech, images, option="--text") if speech or images else []
    import_engine(quiet=quiet or as_json)
    from coterie.evaluate.asked import Asked
    from coterie.evaluate.running import evaluate_opening
    from coterie.survey.answering import media_files

    with (
        quiet_terminal(quiet=quiet),
        nullcontext() if ray is None else without_ray_messages(),
        nullcontext(None) if quiet else _shown_progress() as progress,
    ):
        evaluation = evaluate_opening(
            model,
            text or (),
            opening,
            against=against,
            reference=reference,
            context=context,
            stride=stride,
            limit=limit,
            asked=Asked(
                continuations=continuations,
                continuation_tokens=continuation_tokens,
                prompt_tokens=prompt_tokens,
                exact_match=tuple(exact_match or ()),
                answer_tokens=answer_tokens,
                media=media_files(material),
            ),
            adapt_experts=adapt_experts,
            journal=resume,
            ray=ray,
            progress=progress,
        )
    if output is not None:
        _write(output, evaluation)
    if as_json:
        print_json(evaluation.to_json())
    else:
        _print(evaluation)


def _write(path: Path, evaluation: Evaluation) -> None:
    write_text_file(path, [json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False)])


def _print(evaluation: Evaluation) -> None:
    rows = [*evaluation.texts]
    total = evaluation.total
    if total is not None and len(rows) > 1:
        rows.append(total)
    rows += evaluation.media
    if rows:
        if evaluation.against is None:
            _print_perplexities(rows)
        else:
            _print_comparison(rows)
        results().print()
    out = results()
    for which in (evaluation.model, evaluation.against):
        if which is not None:
            role = "model" if which is evaluation.model else "full model"
            held = f"{which.experts} of {which.total_experts} experts"
            out.print(f"{role}: {which.name} ({which.kind}, {held})")
    if total is not None:
        out.print(f"windows of {evaluation.context} tokens, {evaluation.stride} predicted in each")
    for role, reads in (("model", evaluation.reads), ("full model", evaluation.full_reads)):
        if reads is not None:
            out.print(_reads_line(role, reads))
    if total is not None and total.comparison is not None and total.comparison.identical == total.tokens:
        out.print("All logits are the same numbers as the full model's.", style="green")
    if evaluation.continuations is not None:
        print_continuations(evaluation.continuations)
    if evaluation.exact_match:
        print_exact_match(evaluation.exact_match)
    if evaluation.media:
        names = ", ".join(row.name for row in evaluation.media)
        out.print(f"{names}: of the full model's answers, which both predicted")
    if any(row.blocks < 2 for row in rows if row not in evaluation.media):
        print_note(
            "A text of less than two windows gives no confidence interval: use more text, or a smaller --context."
        )
    for note in calibrated_on(evaluation.texts, evaluation.calibrated_on):
        print_note(note)
    if evaluation.against is not None and evaluation.against.identity != evaluation.model.identity:
        print_note("The two have different routers: they are not the same model in two forms.")


def _print_perplexities(rows: list[Quality]) -> None:
    headings = ("tokens", "nats/token", "perplexity", "accuracy, %")
    table = plain_table("text", *headings, right=headings)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.tokens:,}",
            value_and_interval(row.loss, 4),
            value_and_interval(row.perplexity, 3),
            value_and_reach(row.accuracy, 2, scale=100),
        )
    print_table(table)


def _reads_line(role: str, reads: Reads) -> str:
    line = (
        f"{role}: {format_bytes(round(reads.bytes_per_token))} read per token, hit rate {100 * reads.hit_rate:.1f} %, "
        f"room for {format_bytes(reads.capacity)} of {format_bytes(reads.total_expert_bytes)} of experts"
    )
    if reads.left_out:
        line += f"; {reads.left_out} experts left out ({format_bytes(reads.bytes_not_read)} not read)"
    return line


def _print_comparison(rows: list[Quality]) -> None:
    """Two tables: one of perplexities, one of divergences; together they would be too wide to read."""
    headings = ("tokens", "perplexity", "full model's", "ratio")
    table = plain_table("text", *headings, right=headings)
    for row in rows:
        found = row.comparison
        if found is not None:
            table.add_row(
                row.name,
                f"{row.tokens:,}",
                value_and_interval(row.perplexity, 3),
                value_and_interval(found.full_perplexity, 3),
                value_and_interval(found.ratio, 4),
            )
    print_table(table)
    results().print()
    numbers = ("KLD mean", "median", "90 %", "99 %", "max", "same top, %", "accuracy, %", "full model's")
    table = plain_table("text", *numbers, right=numbers)
    for row in rows:
        found = row.comparison
        if found is not None:
            spread = (found.kld_median, found.kld_p90, found.kld_p99, found.kld_max)
            table.add_row(
                row.name,
                value_and_reach(found.kld, 5),
                *(f"{value:.4f}" for value in spread),
                value_and_reach(found.same_top, 2, scale=100),
                value_and_reach(row.accuracy, 2, scale=100),
                value_and_reach(found.full_accuracy, 2, scale=100),
            )
    print_table(table)


@contextmanager
def _shown_progress() -> Iterator[Callable[[EvaluationProgress], None]]:
    """Shows how many tokens are done and the time left, on stderr: a bar in a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _occasional_lines()
        return
    # Imported late: `coterie --help` needs no bar.
    from rich import progress as bar

    columns = (
        bar.TextColumn("{task.description}"),
        bar.BarColumn(),
        bar.MofNCompleteColumn(),
        bar.TextColumn("tokens, {task.fields[left]}"),
    )
    with bar.Progress(*columns, console=notes()) as shown:
        task = shown.add_task("Evaluating", total=None, left="opening")
        yield lambda progress: shown.update(
            task, total=progress.total, completed=progress.done, left=_left(progress.remaining_s)
        )


def _occasional_lines() -> Callable[[EvaluationProgress], None]:
    last = time.monotonic()

    def tell(progress: EvaluationProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_PROGRESS_SECONDS:
            last = now
            print_note(f"Evaluating: {progress.done} of {progress.total} tokens, {_left(progress.remaining_s)}")

    return tell


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "time left unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left"
