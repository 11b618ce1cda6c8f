"""`coterie verify`: is a store or checkpoint whole and unharmed, and the same as its source?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.console import plain_table, print_json, print_table, results
from coterie.cli.options import ComponentOption, JsonOption, ModelArgument, OfflineOption, RevisionOption, named_model
from coterie.cli.transfer import shown_progress
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from coterie.inspection import ModelVerification


def command(
    model: ModelArgument,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="CHECKPOINT",
            show_default=False,
            callback=named_model,
            help="Compare every tensor bit for bit with this checkpoint.",
        ),
    ] = None,
    component: ComponentOption = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Checks every checksum, header and rule of a store; or files, headers and claims of a checkpoint.

    What the Hub's cache has of a repository is compared with the Hub's checksums, too.

    Names everything that is corrupt, missing, foreign or malformed. The exit code is 1 if there is anything. Experts
    that a partial store does not have by intention are no problem, nor are files that an interrupted growth left.
    """
    from coterie.inspection import verify

    with shown_progress() as progress:
        report = verify(
            model, against=against, component=component, revision=revision, offline=offline, progress=progress
        )
    if as_json:
        print_json(report.to_json())
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(1)


def _print_report(report: ModelVerification) -> None:
    out = results()
    if report.problems:
        table = plain_table("problem", "file", "place", "what")
        for problem in report.problems:
            rule = f" ({problem.rule})" if problem.rule else ""
            table.add_row(problem.kind, problem.file, problem.place, problem.message + rule)
        print_table(table)
        out.print()
    if report.kind == "store":
        out.print(
            f"{report.files} files, {report.experts} experts, {format_bytes(report.checked_nbytes)} checked.",
        )
        if report.absent_experts:
            out.print(f"{report.absent_experts} experts of the model are not in this partial store.")
        _print_leftovers(report)
    else:
        files = "1 file" if report.files == 1 else f"{report.files} files"
        compared = "Checkpoints have no checksums."
        if report.checked_nbytes:
            compared = f"{format_bytes(report.checked_nbytes)} compared with the Hub's checksums."
        out.print(f"{files} checked: headers, claims and sizes. {compared}")
    if report.against is not None:
        experts = f" and {report.compared_experts} experts" if report.kind == "store" else ""
        out.print(f"{report.compared_tensors} tensors{experts} compared bit for bit with {report.against}.")
    if report.ok:
        out.print("Nothing is wrong.", style="green")
    else:
        count = len(report.problems)
        out.print(f"{count} problem{'s' if count > 1 else ''} found.", style="red")


def _print_leftovers(report: ModelVerification) -> None:
    if not report.leftovers:
        return
    out = results()
    count = len(report.leftovers)
    size = format_bytes(sum(leftover.nbytes for leftover in report.leftovers))
    out.print(
        f"Left over from a growth that was interrupted (or is running now): {count} file{'s'[: count > 1]}, {size}."
    )
    for leftover in report.leftovers:
        out.print(f"  {leftover.file}")
    out.print("That is harmless and no part of the store; the next growth or extraction removes it.")
