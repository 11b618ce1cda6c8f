"""`coterie export`: make a standard checkpoint of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.console import print_json, results
from coterie.cli.extract import print_files
from coterie.cli.options import JsonOption, named_model, new_directory
from coterie.cli.transfer import resumable_progress
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from coterie.exporting import ExportReport


def command(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE",
            show_default=False,
            callback=named_model,
            help="A store (its path, or its name in `coterie stores`) with all experts of its model.",
        ),
    ],
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="CHECKPOINT",
            show_default=False,
            callback=new_directory,
            help="The new checkpoint's directory.",
        ),
    ],
    dequantise: Annotated[
        bool,
        typer.Option(
            "--dequantise",
            help="Dequantise weights in a scheme (int2 to int8), a form of Coterie's own. What they lost stays lost.",
        ),
    ] = False,
    shard_size: Annotated[
        str | None,
        typer.Option(
            "--shard-size", metavar="SIZE", show_default=False, help="Bytes per file of weights. Default: 5GB."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files, bytes and disk space; write nothing.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard an unfinished export of another store.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Makes a standard Hugging Face checkpoint of a store, such as one that `coterie prune` made.

    transformers opens it without Coterie, and computes what the store computes, bit for bit. So do other engines that
    read the original. `sha256sum -c SHA256SUMS` checks its files. An interrupted run goes on where it stopped when the
    same command is given again.
    """
    from coterie.exporting import export
    from coterie.spec import parse_bytes
    from coterie.store import DENSE_SHARD_LIMIT

    limit = DENSE_SHARD_LIMIT if shard_size is None else parse_bytes(shard_size)
    with resumable_progress(checkpoint) as progress:
        report = export(
            store,
            checkpoint,
            dequantise=dequantise,
            dry_run=dry_run,
            restart=restart,
            shard_limit=limit,
            progress=progress,
        )
    if as_json:
        print_json(report.to_json())
    elif dry_run:
        _print_plan(report)
    else:
        _print_outcome(report)


def _print_plan(report: ExportReport) -> None:
    print_files(report.files)
    out = results()
    out.print()
    out.print(f"experts        {_experts(report)}")
    out.print(f"checkpoint     {format_bytes(report.nbytes)} in {len(report.files)} files")
    out.print(f"disk needed    {format_bytes(report.needed_nbytes)}")
    out.print(f"disk free      {format_bytes(report.free_nbytes)}")
    _print_left_out(report)


def _print_outcome(report: ExportReport) -> None:
    out = results()
    verb = "Finished" if report.status == "resumed" else "Wrote"
    out.print(
        f"{verb} {report.checkpoint}: {format_bytes(report.nbytes)} in {len(report.files)} files, "
        f"{report.seconds:.1f} s."
    )
    out.print(f"It has {_experts(report)} in each layer.")
    if report.dequantised:
        out.print("Weights were dequantised: what they had lost is lost.")
    _print_left_out(report)


def _print_left_out(report: ExportReport) -> None:
    if report.left_out:
        results().print(f"Left out: {len(report.left_out)} tensors that transformers does not use.")
    if report.changed_keys:
        results().print(f"0 in the configuration because of that: {', '.join(report.changed_keys)}.")


def _experts(report: ExportReport) -> str:
    if len(report.experts) == 1:
        return f"{next(iter(report.experts.values()))} experts"
    return ", ".join(f"{count} experts ({component})" for component, count in report.experts.items())
