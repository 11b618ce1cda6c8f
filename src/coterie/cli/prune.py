"""`coterie prune`: make a store with fewer experts in each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.extract import print_report
from coterie.cli.listed import listed
from coterie.cli.options import (
    ComponentOption,
    DryRunOption,
    JsonOption,
    ModelArgument,
    OfflineOption,
    ProfileOption,
    RestartOption,
    RevisionOption,
    domains_option,
    modality_option,
    new_directory,
)
from coterie.cli.pruning_options import PruneByOption, PruneRankingOption, keep_option
from coterie.cli.transfer import resumable_progress


def command(
    model: ModelArgument,
    store: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="STORE",
            show_default=False,
            callback=new_directory,
            help="The new store.",
        ),
    ],
    keep: Annotated[str, keep_option()],
    by: PruneByOption = "reap",
    profile: ProfileOption = None,
    domains: Annotated[
        str | None,
        domains_option(
            "With --profile: keep what these domains need, such as code,german. Default: all that was recorded."
        ),
    ] = None,
    modality: Annotated[
        list[str] | None,
        modality_option(
            "With --profile: keep what this modality needs, such as text, and let others go. "
            "Default: all of the model's, and each must be in the profile."
        ),
    ] = None,
    ranking: PruneRankingOption = "layer",
    least: Annotated[
        int | None,
        typer.Option(
            "--least",
            min=1,
            metavar="N",
            show_default=False,
            help="With --ranking global: experts that each layer keeps at least. Default: what its router needs.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="For --by random.")] = 0,
    component: ComponentOption = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    dry_run: DryRunOption = False,
    restart: RestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Makes a store of a model with fewer experts in each layer. The source is not changed.

    The experts that stay are numbered from 0, and the routers have never had the others: that is a smaller model,
    complete by itself, and not a partial store. `coterie export` makes a checkpoint of it. What it loses is measured
    with `coterie evaluate`. An interrupted run goes on where it stopped when the same command is given again.
    """
    from coterie.extraction import prune
    from coterie.files.naming import model_path

    with resumable_progress(store, download=not model_path(model).is_dir()) as progress:
        report = prune(
            model,
            store,
            keep=keep,
            by=by,
            profile=profile,
            domains=None if domains is None else listed(domains),
            modalities=modality or None,
            ranking=ranking,
            least=least,
            seed=seed,
            component=component,
            revision=revision,
            offline=offline,
            dry_run=dry_run,
            restart=restart,
            progress=progress,
        )
    print_report(report, as_json=as_json, dry_run=dry_run)
