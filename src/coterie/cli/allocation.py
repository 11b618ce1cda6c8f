"""The options of commands that allocate bits to experts, and what is shown of an allocation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.console import plain_table, print_table, results
from coterie.cli.listed import listed
from coterie.cli.options import domains_option
from coterie.errors import UsageError
from coterie.spec import format_bytes
from coterie.spec.encodings import SCHEME_NAMES

if TYPE_CHECKING:
    from coterie.extraction import Allocation, AllocationReport
    from coterie.extraction.allocation import ComponentChoices, MatrixLevels

BitsOption = Annotated[
    float | None,
    typer.Option(
        "--bits",
        metavar="N",
        show_default=False,
        help="Instead of --scheme, with --profile: bits per weight of experts, scales counted, such as 3.5. What "
        "matters more gets more.",
    ),
]

ExpertBytesOption = Annotated[
    str | None,
    typer.Option(
        "--expert-bytes",
        metavar="SIZE",
        show_default=False,
        help="Instead of --bits: what all experts together may take, such as 12GiB.",
    ),
]

AllocationDomainsOption = Annotated[
    str | None,
    domains_option(
        "With --bits or --expert-bytes: bits for what these domains of the profile use, such as code,german. "
        "Experts that they hardly use are left out."
    ),
]


def requested_allocation(
    bits: float | None,
    expert_bytes: str | None,
    profile: str | None,
    domains: str | None,
    modalities: list[str] | None,
) -> Allocation | None:
    """What the options ask for; None if bits are not to be allocated.

    Raises:
        UsageError: If they do not go together.
    """
    if bits is None and expert_bytes is None:
        if domains is not None:
            raise UsageError(
                "--for says what bits are allocated for, and none are to be allocated.",
                advice="Add --bits, such as 3.5, or --expert-bytes, such as 12GiB.",
            )
        return None
    from coterie.extraction import Allocation

    named = tuple(listed(domains))
    if domains is not None and not named:
        raise UsageError("--for names no domain.", advice="Write it like code,german, or leave it out for all.")
    return Allocation(
        bits=bits, expert_bytes=expert_bytes, profile=profile, domains=named, modalities=tuple(modalities or ())
    )


def print_allocation(report: AllocationReport, *, histogram: bool) -> None:
    """Prints an allocation beside uniform schemes, and, if wanted, how often each level was given."""
    if histogram:
        _print_levels(report)
    table = plain_table(
        "experts", "bits per weight", "bytes", "error", "asked per token",
        right=("bits per weight", "bytes", "error", "asked per token"),
    )  # fmt: skip
    for one in report.components:
        prefix = f"{one.component}: " if len(report.components) > 1 else ""
        for choice in sorted((one.allocation, *one.uniform), key=lambda choice: choice.bits):
            table.add_row(
                prefix + choice.name,
                f"{choice.bits:.2f}",
                format_bytes(choice.nbytes),
                f"{choice.error:.2e}",
                format_bytes(choice.asked_nbytes),
            )
    print_table(table)
    out = results()
    out.print()
    facts = report.facts
    tokens = "; ".join(f"{component}: {', '.join(claims)}" for component, claims in facts.tokens_of.items())
    what = "energy of the domains asked for" if facts.domains else "mean contribution (REAP), each matrix by itself"
    out.print(f"Bits by        {what}. Tokens of {tokens}.")
    for one in report.components:
        out.print(f"Price          {_price(one)}")
    if facts.left_out:
        out.print(
            f"Left out       {facts.left_out} experts: a partial store, opened with --missing mask, which lets the "
            "router choose among the others."
        )


def _price(one: ComponentChoices) -> str:
    return (
        f"A token of the {one.component} asks for {one.asked_ratio - 1:+.1%} of the bytes that it would ask for if all "
        "experts were of equal size."
    )


def _print_levels(report: AllocationReport) -> None:
    names = [name for name in SCHEME_NAMES if any(name in one.levels for one in report.matrices)]
    left_out = ["left out"] if report.facts.left_out else []
    table = plain_table("layer", "matrix", *left_out, *names, right=(*left_out, *names))
    for one in report.matrices:
        counts = [one.left_out] if report.facts.left_out else []
        table.add_row(
            _layer(one), one.matrix, *(str(n or "") for n in (*counts, *(one.levels.get(s, 0) for s in names)))
        )
    print_table(table)
    results().print()


def _layer(one: MatrixLevels) -> str:
    return f"{one.component} {one.layer}" + ("" if one.bank == "mlp" else f" {one.bank}")
