"""`coterie publish`: upload a store to the Hub, where everybody opens it by its id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.console import plain_table, print_json, print_note, print_table, results
from coterie.cli.options import JsonOption, named_model
from coterie.cli.transfer import shown_progress
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from coterie.publishing import Publication


def command(
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE",
            show_default=False,
            callback=named_model,
            help="A store on this machine (its path, or its name in `coterie stores`).",
        ),
    ],
    repository: Annotated[
        str,
        typer.Argument(
            metavar="REPOSITORY", show_default=False, help="Its id on the Hub, such as my-name/my-model-int4."
        ),
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            show_default=False,
            help="Who sees the repository. Default: as it is; a new one is private.",
        ),
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option("--branch", metavar="BRANCH", show_default=False, help="The branch. Default: main."),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", metavar="TEXT", show_default=False, help="The message of the commit."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            metavar="ID",
            show_default=False,
            help="For the card: the repository of the checkpoint that the store was made from. Default: the one that "
            "the store names.",
        ),
    ] = None,
    keep_card: Annotated[
        bool, typer.Option("--keep-card", help="Leave the card (README.md) as it is in the repository.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the store and show files, bytes and the card; ask the Hub nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Uploads a store to a repository of the Hub. `coterie generate REPOSITORY` and all other commands open it there.

    Compares all checksums of the store first. The files become visible together, in one commit, with a card. An
    interrupted upload goes on when the same command is given again: what the Hub has is not sent again.

    Who publishes logs in before with `hf auth login`, with a token that may write.
    """
    from coterie.publishing import publish

    try:
        with shown_progress() as progress:
            report = publish(
                store,
                repository,
                private=private,
                branch=branch,
                message=message,
                base_model=base_model,
                keep_card=keep_card,
                dry_run=dry_run,
                progress=progress,
            )
    except KeyboardInterrupt:
        print_note("Stopped. Nothing was published; files that were sent whole are not sent again by the same command.")
        raise
    if as_json:
        print_json(report.to_json())
    elif dry_run:
        _print_plan(report)
    else:
        _print_outcome(report)


def _print_plan(report: Publication) -> None:
    out = results()
    table = plain_table("file", "bytes", right=("bytes",))
    for name, nbytes in sorted(report.files.items()):
        table.add_row(name, format_bytes(nbytes))
    print_table(table)
    out.print()
    if report.card is not None:
        out.print(report.card, markup=False, highlight=False)
    out.print(f"{len(report.files)} files, {format_bytes(report.nbytes)}, would be in {report.repo_id}.")


def _print_outcome(report: Publication) -> None:
    out = results()
    assert report.commit is not None
    if report.status == "unchanged":
        out.print(f"{report.repo_id} has this store already (commit {report.commit[:12]}).")
        return
    out.print(
        f"Published {report.repo_id} (commit {report.commit[:12]}): {format_bytes(report.nbytes)} in "
        f"{len(report.files)} files, {format_bytes(report.sent_nbytes)} of them new, {report.seconds:.1f} s."
    )
    if report.removed:
        out.print(f"{len(report.removed)} files of the store that was there before were removed.")
    branch = "" if report.branch == "main" else f" --revision {report.branch}"
    out.print(f"Open it with `coterie generate {report.repo_id}{branch}`.")
