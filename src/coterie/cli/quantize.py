"""`coterie quantize`: make a smaller store of a store or a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from coterie.cli.extract import print_report
from coterie.cli.options import (
    ExpertSchemesOption,
    JsonOption,
    ModelArgument,
    NewStoreArgument,
    OfflineOption,
    ProfileOption,
    RestartOption,
    known_dense_scheme,
    known_scheme,
)
from coterie.cli.transfer import resumable_progress


def command(
    model: ModelArgument,
    store: NewStoreArgument,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            callback=known_scheme,
            metavar="SCHEME",
            show_default=False,
            help="For experts: int8, int6, int5, int4, int3 or int2; or, with --profile, by trust, such as "
            "trust:top25%=native,rest=int4. Default: as they are.",
        ),
    ] = None,
    expert_schemes: ExpertSchemesOption = None,
    dense_scheme: Annotated[
        str | None,
        typer.Option(
            "--dense-scheme",
            callback=known_dense_scheme,
            metavar="SCHEMES",
            show_default=False,
            help="For linear layers outside experts: one of these for all, or by part, as `coterie extract` has it. "
            "Default: as they are.",
        ),
    ] = None,
    profile: ProfileOption = None,
    offline: OfflineOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files, bytes and disk space; write no weights.")
    ] = False,
    restart: RestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Makes a new store with weights in fewer bits. The source is not changed, and its selection of experts is kept.

    Of a store that has the checkpoint's own weights the result is the one that `coterie extract` would make of the
    checkpoint in these schemes. An interrupted run goes on where it stopped when the same command is given again.
    """
    from coterie.extraction import quantize

    with resumable_progress(store) as progress:
        report = quantize(
            model,
            store,
            scheme=scheme,
            expert_schemes=expert_schemes,
            dense_scheme=dense_scheme,
            profile=profile,
            offline=offline,
            dry_run=dry_run,
            restart=restart,
            progress=progress,
        )
    print_report(report, as_json=as_json, dry_run=dry_run)
