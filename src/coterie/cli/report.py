"""`coterie report`: one page of answers about a model's experts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.console import print_json, print_note, results
from coterie.cli.files import write_bytes_file, write_text_file
from coterie.cli.generation_options import QuietOption
from coterie.cli.opening import import_engine, open_model, opens_model
from coterie.cli.progress import layer_progress
from coterie.errors import UsageError
from coterie.files.replacing import check_writable
from coterie.spec.opening import Opening

if TYPE_CHECKING:
    from coterie.analysis import ReportPages, Trial


@opens_model(
    without=(
        "missing",
        "source",
        "eviction",
        "prefetch",
        "profile",
        "warm",
        "pin",
        "experts_per_token",
        "drop_cold",
        "max_context",
        "max_rate",
        "verify_reads",
    )
)
def command(
    model: shared.ModelArgument,
    profile: Annotated[
        str,
        typer.Option(
            "--profile",
            metavar="PROFILE",
            show_default=False,
            help="A profile of the model: a file, or postgresql://USER@HOST/DATABASE.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            file_okay=False,
            metavar="DIR",
            show_default=False,
            help="Where report.md, report.html, report.json and the pictures go; made if it is not there.",
        ),
    ],
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            exists=True,
            dir_okay=False,
            metavar="FILE",
            show_default=False,
            help="UTF-8 text for the model to read (4,096 tokens at most): weights within a token, heads, salience.",
        ),
    ] = None,
    *,
    opening: Opening,
    as_json: shared.JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answers from a profile what a model's experts do, with figures, intervals and second-half replication.

    Are experts partitioned by modality? Does the router see tokens? Is one expert dominant? What is universal, what
    carries the load? Each answer is computed from the data, which may not tell. The same profile gives the same pages.
    """
    _check(output)
    import_engine(quiet=quiet or as_json)
    from coterie.analysis import make_report

    trial = None
    if text is not None:
        trial = _trial(model, text, opening, quiet=quiet or as_json)
    with layer_progress("Answering") as progress:
        pages = make_report(
            model,
            profile,
            component=opening.component,
            trial=trial,
            revision=opening.revision,
            offline=opening.offline,
            progress=progress,
        )
    _write(pages, output)
    if as_json:
        print_json(pages.report)
        return
    for answer in pages.report.answers:
        results().print(f"{answer.question}\n  {answer.answer}\n")
    print_note(f"Wrote {output / 'report.md'} and {output / 'report.html'}.")


def _trial(model: str, text: Path, opening: Opening, *, quiet: bool) -> Trial:
    from coterie.analysis import run_trial
    from coterie.evaluate.texts import beginning
    from coterie.files.text import read_text
    from coterie.hf.tokenizer import decode_tokens, encode_text

    with open_model(model, opening, quiet=quiet) as opened:
        tokenizer = opened.processors.tokenizer
        components = sorted({bank.component for bank in opened.runtime.banks})
        return run_trial(
            opened.model,
            encode_text(tokenizer, read_text(text, filled=True)),
            component=opening.component or components[0],
            prefix=beginning(tokenizer),
            text_of=lambda token: decode_tokens(tokenizer, [token]),
        )


def _check(output: Path) -> None:
    """Finds before any work is done that pages cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}.", path=output) from error
    check_writable(output / "report.json")


def _write(pages: ReportPages, output: Path) -> None:
    from coterie.analysis import html_page, markdown_page

    for name, data in pages.pictures.items():
        write_bytes_file(output / f"{name}.svg", [data])
    write_text_file(output / "report.json", [json.dumps(asdict(pages.report), indent=2, ensure_ascii=False)])
    write_bytes_file(output / "report.md", [markdown_page(pages.report).encode()])
    write_bytes_file(output / "report.html", [html_page(pages.report, pages.pictures).encode()])
