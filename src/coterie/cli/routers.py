"""`coterie routers`: what the matrices of a model's routers show, without any data."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli import options as shared
from coterie.cli.console import plain_table, print_json, print_note, print_table, results
from coterie.cli.files import write_text_file
from coterie.cli.progress import layer_progress
from coterie.errors import UsageError
from coterie.files.replacing import check_writable

if TYPE_CHECKING:
    from coterie.analysis import Agreement, RouterAnalysis, RouterLayer


def command(
    model: shared.ModelArgument,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="PROFILE",
            show_default=False,
            help="Compare clusters with the modalities and domains of this profile of the model.",
        ),
    ] = None,
    component: shared.ComponentOption = None,
    clusters: Annotated[
        str, typer.Option("--clusters", metavar="N", help="Clusters of each layer; auto takes what suits it best.")
    ] = "auto",
    layer: Annotated[
        str | None,
        typer.Option("--layer", metavar="LIST", show_default=False, help="Only these layers, such as 0-7,12."),
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option("--expert", metavar="LAYER:ID", show_default=False, help="List the nearest neighbours of it."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the random numbers.")] = 0,
    revision: shared.RevisionOption = None,
    offline: shared.OfflineOption = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", dir_okay=False, metavar="FILE", show_default=False, help="Write the result as JSON too."
        ),
    ] = None,
    as_json: shared.JsonOption = False,
) -> None:
    """Shows what the geometry of a model's routers says. Reads their matrices alone; no model is built.

    Whether the rows of a layer form clusters is tested against random arrangements of the same mean and covariance; the
    effective rank stands beside that of a random matrix; the overlap says how much a layer's router reads the same
    directions of the hidden state as the next one's. With --profile: are the clusters what the profile knows as
    modalities and domains? docs/routers.md says how all that is computed.
    """
    number = _clusters(clusters)
    asked = None if expert is None else _expert(expert)
    if output is not None:
        check_writable(output)
    from coterie.analysis import examine_routers

    with layer_progress("Examining") as progress:
        analysis = examine_routers(
            model,
            profile=profile,
            component=component,
            clusters=number,
            layers=layer,
            expert=asked,
            revision=revision,
            offline=offline,
            seed=seed,
            progress=progress,
        )
    if output is not None:
        write_text_file(output, [json.dumps(dataclasses.asdict(analysis), indent=2, ensure_ascii=False)])
    if as_json:
        print_json(analysis)
    else:
        _print(analysis)


def _clusters(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"{text!r} is no number of clusters.", advice="Give a number from 2 on, or auto.", got=text)
    return int(text)


def _expert(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise UsageError(f"{text!r} is no expert.", advice="Write it as LAYER:ID, such as 12:45.", got=text)
    return int(match[1]), int(match[2])


def _print(analysis: RouterAnalysis) -> None:
    out = results()
    out.print(analysis.answer)
    out.print()
    overlaps = {(one.component, one.bank, one.layer): one for one in analysis.overlaps}
    numbers = ("layer", "experts", "rank", "random", "clusters", "silhouette", "chance", "q", "overlap")
    groupings = list(dict.fromkeys(one.grouping for one in analysis.agreements))
    columns = [f"{grouping} {name}" for grouping in groupings for name in ("ARI", "q")]
    table = plain_table("component", *numbers, *columns, right=(*numbers, *columns))
    for layer in analysis.layers:
        overlap = overlaps.get((layer.component, layer.bank, layer.layer))
        agreements = [_agreement(analysis, layer, grouping) for grouping in groupings]
        table.add_row(
            layer.component if layer.bank == "mlp" else f"{layer.component} {layer.bank}",
            str(layer.layer),
            str(layer.experts),
            f"{layer.effective_rank:.1f}",
            f"{layer.random_effective_rank:.1f}",
            f"{layer.clusters}" if layer.clustered else f"({layer.clusters})",
            _figure(layer.silhouette),
            _figure(layer.random_silhouette),
            _figure(layer.q_value),
            "" if overlap is None else f"{overlap.overlap:.2f} ({overlap.random_overlap:.2f})",
            *(text for one in agreements for text in _agreement_cells(one)),
        )
    print_table(table)
    out.print(
        "rank: effective rank of the matrix, and of a random one. clusters: in brackets where they are no more than "
        "chance. overlap: with the next layer, in brackets what random directions have."
    )
    if analysis.neighbourhood is not None:
        one = analysis.neighbourhood
        near = ", ".join(f"{n.expert_id} (cosine {n.cosine:.2f}, {n.deviations:+.1f} σ)" for n in one.neighbours)
        out.print(f"\nNearest to expert {one.expert_id} of {one.component} layer {one.layer}: {near}")
    reasons = {one.reason: one for one in reversed(analysis.unsupported)}
    for reason, first in reversed(reasons.items()):
        count = sum(one.reason == reason for one in analysis.unsupported)
        print_note(f"Left out: the router of {first.component} layer {first.layer} {reason} ({count} such layers).")


def _agreement(analysis: RouterAnalysis, layer: RouterLayer, grouping: str) -> Agreement | None:
    place = (layer.component, layer.layer, layer.bank, grouping)
    found = (one for one in analysis.agreements if (one.component, one.layer, one.bank, one.grouping) == place)
    return next(found, None)


def _agreement_cells(one: Agreement | None) -> tuple[str, str]:
    return ("", "") if one is None else (f"{one.rand_index:.2f}", _figure(one.q_value))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
