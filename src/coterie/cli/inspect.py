"""`coterie inspect`: what a store or checkpoint holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.console import facts_table, plain_table, print_json, print_table, results
from coterie.cli.options import (
    ComponentOption,
    JsonOption,
    ModelArgument,
    OfflineOption,
    RevisionOption,
    dense_scheme_option,
)
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from coterie.inspection import InspectReport
    from coterie.inspection.report import BankFacts
    from coterie.inspection.row_batching import RowsFacts
    from coterie.store import AllocationFacts, CalibrationFacts


def command(
    model: ModelArgument,
    component: ComponentOption = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            metavar="SCHEME",
            show_default=False,
            help="Of a checkpoint: what would a store hold whose experts are in this scheme, such as int4?",
        ),
    ] = None,
    dense_scheme: Annotated[
        str | None,
        dense_scheme_option("The same of linear layers outside experts; as `coterie extract` takes it."),
    ] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Shows what a store or checkpoint holds: completeness by layer and component, bytes on disk and in memory.

    With --scheme it shows what a store of a checkpoint would hold, before it is made; weights are neither read nor
    downloaded for that.

    What a memory budget would hold of it, and how fast it would run, says `coterie plan`.
    """
    from coterie.inspection import inspect

    report = inspect(
        model,
        component=component,
        scheme=scheme,
        dense_scheme=dense_scheme,
        revision=revision,
        offline=offline,
    )
    if as_json:
        print_json(report.to_json())
        return
    _print_model(report)
    _print_components(report)
    _print_dense_parts(report)
    _print_layers(report)


def _print_model(report: InspectReport) -> None:
    model = report.model
    table = facts_table()

    def row(name: str, value: str) -> None:
        table.add_row(name, value)

    row(model.kind, model.model)
    source = model.source if model.revision is None else f"{model.source} at {model.revision}"
    row("source", source)
    row("class", model.model_class + ("" if model.component is None else f" ({model.component} of a larger model)"))
    row("identity", model.identity or "not known before the routers are downloaded")
    row("integrity", model.integrity or "not known before the routers are downloaded")
    share = "complete" if report.complete else f"partial, {_percent(report.present, report.experts)}"
    row("experts", f"{report.present} of {report.experts}, {share}")
    if report.calibration is not None:
        row("calibrated", _calibration(report.calibration))
    if report.allocation is not None:
        row("bits", _allocation(report.allocation))
    row("as a store" if report.planned else "on disk", format_bytes(report.disk_nbytes))
    row("full size", "unknown" if report.full_nbytes is None else format_bytes(report.full_nbytes))
    row("dense part", _dense(report))
    row("minimum", f"{format_bytes(report.minimum_nbytes)} for the process, without context")
    row("working set", f"{format_bytes(report.working_set_nbytes)} of experts for one token")
    for batching, facts in report.batching.items():
        row(f"{batching} pass", _rows(facts))
    if report.ignored:
        row("ignored", f"{len(report.ignored)} tensors that transformers does not use, such as {report.ignored[0]}")
    print_table(table)


def _print_components(report: InspectReport) -> None:
    results().print()
    table = plain_table(
        "component",
        "banks",
        "experts",
        "present",
        "bytes",
        "full",
        "working set",
        right=("banks", "experts", "present", "bytes", "full", "working set"),
    )
    for one in report.components:
        table.add_row(
            one.component,
            str(one.banks),
            str(one.experts),
            f"{one.present} ({_percent(one.present, one.experts)})",
            format_bytes(one.present_nbytes),
            "unknown" if one.full_nbytes is None else format_bytes(one.full_nbytes),
            format_bytes(one.working_set_nbytes),
        )
    print_table(table)


def _print_dense_parts(report: InspectReport) -> None:
    if not report.dense_parts:
        return
    results().print()
    table = plain_table("part", "bytes", "schemes", right=("bytes",))
    for one in report.dense_parts:
        schemes = [f"{scheme} {format_bytes(nbytes)}" for scheme, nbytes in one.schemes.items()]
        table.add_row(one.part, format_bytes(one.nbytes), ", ".join(schemes if len(schemes) > 1 else one.schemes))
    print_table(table)


def _print_layers(report: InspectReport) -> None:
    results().print()
    table = plain_table(
        "layer", "bank", "top-k", "experts", "present", "bytes", "schemes",
        right=("top-k", "experts", "present", "bytes"),
    )  # fmt: skip
    for bank in report.banks:
        table.add_row(
            f"{bank.component} {bank.layer}",
            bank.bank,
            "varies" if bank.top_k is None else str(bank.top_k),
            str(bank.experts),
            f"{bank.present} ({_percent(bank.present, bank.experts)})",
            format_bytes(bank.present_nbytes),
            _schemes(bank),
        )
    print_table(table)


def _calibration(facts: CalibrationFacts) -> str:
    tokens = ", ".join(f"{domain} {count:,}" for domain, count in sorted(facts.tokens.items()))
    return f"codes chosen over {sum(facts.tokens.values()):,} tokens: {tokens}"


def _allocation(facts: AllocationFacts) -> str:
    tokens = "; ".join(f"{component}: {', '.join(claims)}" for component, claims in facts.tokens_of.items())
    left_out = f", {facts.left_out} experts left out" if facts.left_out else ""
    by = "by their energy" if facts.domains else "by what experts add (REAP)"
    return f"{facts.bits / 1000:g} per weight{left_out}, {by}, over {tokens}; profile {facts.profile[:12]}"


def _dense(report: InspectReport) -> str:
    has_parts = "=" in report.dense_scheme
    scheme = "" if report.dense_scheme == "native" else f", linear layers in {report.dense_scheme}"
    scheme = ", linear layers in one scheme for each part (below)" if has_parts else scheme
    if report.dense_memory_nbytes <= report.dense_nbytes:
        return f"{format_bytes(report.dense_nbytes)}, always resident{scheme}"
    loaded = format_bytes(report.dense_memory_nbytes)
    return f"{format_bytes(report.dense_nbytes)} on disk, {loaded} dequantised in memory, always resident{scheme}"


def _schemes(bank: BankFacts) -> str:
    schemes = ", ".join(
        f"{scheme} {count}" if len(bank.schemes) > 1 else scheme for scheme, count in bank.schemes.items()
    )
    return f"{schemes} ({', '.join(bank.encodings)})" if bank.encodings else schemes


def _rows(facts: RowsFacts) -> str:
    if facts.rows is None:
        return f"not known: {facts.why}"
    return f"up to {facts.rows} requests" if facts.why is None else f"one request: {facts.why}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "0%"
