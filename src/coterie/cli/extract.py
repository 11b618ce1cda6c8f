"""`coterie extract`: make a store of a checkpoint, go on with an interrupted one, add experts to a finished one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.allocation import (
    AllocationDomainsOption,
    BitsOption,
    ExpertBytesOption,
    print_allocation,
    requested_allocation,
)
from coterie.cli.console import plain_table, print_json, print_note, print_table, results
from coterie.cli.options import (
    CheckpointArgument,
    ComponentOption,
    DryRunOption,
    ExpertSchemesOption,
    GroupOption,
    JsonOption,
    MaxRateOption,
    NewStoreArgument,
    OfflineOption,
    ProfileDomainOption,
    ProfileOption,
    RestartOption,
    RevisionOption,
    dense_scheme_option,
    known_scheme,
    modality_option,
)
from coterie.cli.transfer import resumable_progress
from coterie.spec import format_bytes
from coterie.spec.dense_parts import SCHEMED_PARTS
from coterie.spec.scheme_names import with_group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coterie.extraction import ExtractionReport
    from coterie.extraction.network import NetworkUse
    from coterie.quant.packed import Rounded
    from coterie.store.survey import SurveyedFile


def command(
    checkpoint: CheckpointArgument,
    store: NewStoreArgument,
    experts: Annotated[
        str | None,
        typer.Option(
            "--experts",
            metavar="IDS",
            show_default=False,
            help="Only these, such as 0-7,12; or by layer, such as '3-5:0-18;6:0,1'; or none, for what is no expert "
            "alone. Default: all.",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="LAYERS",
            show_default=False,
            help="Apply --experts to these layers only, such as 0-3; the other layers keep all experts.",
        ),
    ] = None,
    top: Annotated[
        str | None,
        typer.Option(
            "--top",
            metavar="SHARE",
            show_default=False,
            help="With --profile, instead of --experts: the most used ones, such as 25% of all; in every layer at "
            "least as many as a token uses.",
        ),
    ] = None,
    profile: ProfileOption = None,
    domain: ProfileDomainOption = None,
    modality: Annotated[
        list[str] | None,
        modality_option(
            "With --profile: what tokens of this modality use, such as audio. Default: all; "
            "with --bits, all that the model takes or makes, and each must be in the profile."
        ),
    ] = None,
    component: ComponentOption = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            callback=known_scheme,
            metavar="SCHEME",
            show_default=False,
            help="How experts are stored: native (as in the checkpoint), or smaller, with losses, in int8, int6, int5, "
            "int4, int3 or int2; or, with --profile, by trust, such as trust:top25%=native,rest=int4. Default: as "
            "those already in the store, else native.",
        ),
    ] = None,
    group: GroupOption = None,
    expert_schemes: ExpertSchemesOption = None,
    bits: BitsOption = None,
    expert_bytes: ExpertBytesOption = None,
    domains: AllocationDomainsOption = None,
    dense_scheme: Annotated[
        str | None,
        dense_scheme_option(
            "How linear layers outside experts are stored: one of these schemes for all, or by part, such as "
            f"attention=int8,encoders=native,rest=int4. Parts: {', '.join(SCHEMED_PARTS)} (rounded only if it is "
            "named). Default: as in the store; for a new one native, or, if the model speaks and its experts are "
            "lossy, int8 for all but encoders."
        ),
    ] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    keep_download: Annotated[
        bool,
        typer.Option(
            "--keep-download",
            help="Download whole shards into the Hub's cache and keep them, instead of reading only what is needed.",
        ),
    ] = False,
    max_rate: MaxRateOption = None,
    dry_run: DryRunOption = False,
    restart: RestartOption = False,
    as_json: JsonOption = False,
) -> None:
    """Makes a store of a checkpoint: every expert asked for, and always everything that is not an expert.

    An interrupted extraction goes on where it stopped when the same command is given again. A finished store is
    grown: experts that it lacks are added, nothing is rewritten. So a store of the most used experts grows by what a
    larger --top or another profile adds. From the Hub only the bytes that are needed are read, and no shard is kept
    beside the store.
    """
    from coterie.extraction import extract
    from coterie.files.naming import model_path

    allocation = requested_allocation(bits, expert_bytes, profile, domains, modality)
    downloads = keep_download or allocation is not None
    with resumable_progress(store, download=downloads and not model_path(checkpoint).is_dir()) as progress:
        report = extract(
            checkpoint,
            store,
            experts=experts,
            layers=layers,
            top=top,
            profile=profile if top is not None or allocation is None else None,
            domain=domain,
            modalities=(modality or None) if top is not None or allocation is None else None,
            component=component,
            scheme=with_group(scheme, group),
            expert_schemes=expert_schemes,
            allocation=allocation,
            dense_scheme=dense_scheme,
            revision=revision,
            offline=offline,
            keep_download=keep_download,
            max_rate=max_rate,
            dry_run=dry_run,
            restart=restart,
            planned=None if dry_run else _say_what_four_bits_take,
            progress=progress,
        )
    print_report(report, as_json=as_json, dry_run=dry_run)


def _say_what_four_bits_take(report: ExtractionReport) -> None:
    """Before gigabytes are written: a native store is several times as large as one that runs fast."""
    if report.int4_nbytes is not None:
        print_note(_four_bits(report))


def _four_bits(report: ExtractionReport) -> str:
    dense = "" if report.int4_dense_scheme is None else f" --dense-scheme {report.int4_dense_scheme}"
    return (
        f"Stored as in the checkpoint: {format_bytes(report.store_nbytes)}. In four bits, with losses, about "
        f"{format_bytes(report.int4_nbytes or 0)}: --scheme int4{dense}"
    )


def print_report(report: ExtractionReport, *, as_json: bool, dry_run: bool) -> None:
    """Prints what was done, or would be."""
    if as_json:
        print_json(report.to_json())
    elif dry_run:
        _print_plan(report)
    else:
        _print_outcome(report)


def print_files(files: Iterable[SurveyedFile]) -> None:
    """Prints which files there would be, and which are there already."""
    table = plain_table("file", "size", "", right=("size",))
    for file in files:
        table.add_row(file.file, format_bytes(file.nbytes), "there already" if file.present else "")
    print_table(table)


def _print_plan(report: ExtractionReport) -> None:
    print_files(report.files)
    if report.downloads:
        results().print()
        table = plain_table("download", "size", right=("size",))
        for shard in report.downloads:
            table.add_row(shard.file, format_bytes(shard.nbytes))
        print_table(table)
    out = results()
    out.print()
    if report.allocation is not None:
        print_allocation(report.allocation, histogram=True)
        out.print()
    out.print(f"experts        {_experts(report)}")
    if report.dense_scheme != "native":
        out.print(f"other layers   {report.dense_scheme}")
    out.print(f"store          {format_bytes(report.store_nbytes)} in {len(report.files)} files")
    if report.downloads:
        total = sum(shard.nbytes for shard in report.downloads)
        out.print(f"download       {format_bytes(total)} in {len(report.downloads)} files")
    if report.network is not None:
        network = report.network
        out.print(f"network        {format_bytes(network.needed_nbytes)} of {network.files} files")
    out.print(f"disk needed    {format_bytes(report.needed_nbytes)}")
    out.print(f"disk free      {format_bytes(report.free_nbytes)}")
    for disk in report.disks[1:]:
        out.print(f"cache needed   {format_bytes(disk.needed)} on the disk of {disk.path}")
        out.print(f"cache free     {format_bytes(disk.free)}")
    if report.int4_nbytes is not None:
        print_note(_four_bits(report))


def _print_outcome(report: ExtractionReport) -> None:
    out = results()
    if report.status == "already complete":
        out.print(f"{report.store} has all of this already; nothing was written.")
    else:
        verb = {"grown": "Grew", "resumed": "Finished"}.get(report.status, "Wrote")
        speed = report.written_nbytes / report.seconds if report.seconds > 0 else 0.0
        out.print(
            f"{verb} {report.store}: {format_bytes(report.written_nbytes)} in {report.seconds:.1f} s "
            f"({format_bytes(int(speed))}/s).",
        )
    out.print(f"It has {_experts(report)}, {format_bytes(report.store_nbytes)} on disk.")
    if report.network is not None and report.network.requests:
        out.print(_network(report.network))
    if "=" in report.dense_scheme:
        out.print(f"Linear layers outside experts: {report.dense_scheme.replace('=', ' ').replace(',', ', ')}.")
    if report.rounded is not None:
        out.print(_packed(report.rounded))
    if report.allocation is not None:
        out.print()
        print_allocation(report.allocation, histogram=False)
    if report.ignored:
        out.print(f"Left out: {len(report.ignored)} tensors that transformers does not use.")


def _packed(rounded: Rounded) -> str:
    kept = "Weights that the checkpoint has quantised are kept as they are"
    if not rounded.zeros:
        return f"{kept}: nothing was rounded."
    return (
        f"{kept}, but for {rounded.zeros:,} of {rounded.of:,} zeros, which were rounded by at most {rounded.steps:.2g} "
        "of a step of their group."
    )


def _network(network: NetworkUse) -> str:
    again = f", {network.retries} of them again" if network.retries else ""
    text = f"Read {format_bytes(network.received_nbytes)} over the network in {network.requests} requests{again}."
    if network.checked:
        text += f" {len(network.checked)} files were compared with the Hub's SHA-256."
    if network.unchecked:
        text += f" {len(network.unchecked)} were read in part, which no checksum covers."
    return text


def _experts(report: ExtractionReport) -> str:
    if report.complete:
        return f"all {report.experts_total} experts"
    return f"{report.experts_present} of {report.experts_total} experts"
