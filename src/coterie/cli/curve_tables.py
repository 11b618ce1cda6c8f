"""Tables of a curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from coterie.cli.console import plain_table, print_note, print_table, results
from coterie.cli.estimates import value_and_reach
from coterie.spec import format_bytes

if TYPE_CHECKING:
    from coterie.curves import Curve, CurvePoint
    from coterie.evaluate import Comparison

Column = tuple[str, Callable[["CurvePoint"], str]]

_QUALITY: tuple[Column, ...] = (
    ("KLD", lambda point: value_and_reach(point.kld, 5)),
    ("same top, %", lambda point: value_and_reach(_compared(point).same_top, 2, scale=100)),
    ("accuracy, %", lambda point: value_and_reach(point.total.accuracy, 2, scale=100)),
    ("perplexity ÷ full", lambda point: f"{_compared(point).ratio.value:.4f}"),
)
_COVERAGE: tuple[Column, ...] = (
    ("experts", lambda point: f"{point.experts} ({point.experts / point.total_experts:.0%})"),
    ("chosen by", lambda point: point.setting.chosen_by),
    ("absent", lambda point: str(point.setting.missing or "–")),
)
_PER_TOKEN: Column = ("per token", lambda point: format_bytes(point.token_nbytes))
_BYTES: Column = ("bytes", lambda point: format_bytes(point.expert_nbytes))
_GATES: Column = ("gate weight kept", lambda point: "–" if point.gate_mass is None else f"{point.gate_mass:.1%}")
_BITS: tuple[Column, ...] = (
    ("experts", lambda point: point.setting.label),
    ("bits per weight", lambda point: f"{point.bits:.2f}"),
)
_READS: tuple[Column, ...] = (
    ("drop-cold", lambda point: f"{point.setting.drop_cold:g}" if point.setting.drop_cold else "off"),
    ("read per token", lambda point: "–" if point.reads is None else format_bytes(round(point.reads.bytes_per_token))),
    ("hit rate", lambda point: "–" if point.reads is None else f"{point.reads.hit_rate:.1%}"),
)
_TABLES: dict[str, tuple[str, tuple[Column, ...], int]] = {
    "coverage": ("Experts that are there", (*_COVERAGE, _GATES, _BYTES, *_QUALITY), 3),
    "experts_per_token": (
        "Experts per token",
        (("experts per token", lambda point: str(point.setting.experts_per_token)), _PER_TOKEN, *_QUALITY),
        0,
    ),
    "bits": ("Bits per weight of experts", (*_BITS, _BYTES, _PER_TOKEN, *_QUALITY), 1),
    "drop_cold": ("Experts left out rather than read", (*_READS, *_QUALITY), 0),
}
"""Axis → heading, columns, and how many of them are to the left."""


def print_curve(curve: Curve) -> None:
    """Prints a table for each axis, the smallest sets, and what was compared with what."""
    out = results()
    for axis, (heading, columns, left) in _TABLES.items():
        points = [point for point in curve.points if point.setting.axis == axis]
        if not points:
            continue
        shown = [column for column in columns if column is not _GATES or any(p.gate_mass is not None for p in points)]
        names = [name for name, _ in shown]
        table = plain_table(*names, right=tuple(names[left:]))
        for point in points:
            table.add_row(*(cell(point) for _, cell in shown))
        out.print(f"{heading}:", style="bold")
        print_table(table)
        out.print()
    _print_smallest(curve)
    _print_shared(curve)
    total = curve.points[0].total if curve.points else None
    tokens = "" if total is None else f", {total.tokens:,} tokens"
    out.print(f"full model: {curve.against.name} ({curve.against.kind}){tokens} of {', '.join(curve.texts)}")
    if total is not None and total.comparison is not None:
        full = total.comparison
        out.print(
            f"its accuracy {full.full_accuracy.value:.2%}, its perplexity {full.full_perplexity.value:.3f}; windows of "
            f"{curve.context} tokens, {curve.stride} predicted in each"
        )
    if any(
        point.reads is not None and point.reads.capacity >= point.reads.total_expert_bytes for point in curve.points
    ):
        print_note(
            "All experts fit in memory: little is read, and nothing is left out. --expert-memory gives them less."
        )
    if any(point.total.blocks < 2 for point in curve.points):
        print_note(
            "A text of less than two windows gives no confidence interval: use more text, or a smaller --context."
        )


def _print_smallest(curve: Curve) -> None:
    if not curve.smallest:
        return
    headings = ("experts", "KLD", "gate weight kept", "bytes")
    table = plain_table("text", "KLD at most", "chosen by", "absent", *headings, right=("KLD at most", *headings))
    for found in curve.smallest:
        table.add_row(
            found.domain,
            f"{found.bound:g}",
            found.by,
            found.missing,
            f"{found.experts} ({found.experts / found.total_experts:.0%})",
            value_and_reach(found.kld, 5),
            f"{found.gate_mass:.1%}",
            format_bytes(found.expert_nbytes),
        )
    results().print("Fewest experts:", style="bold")
    print_table(table)
    results().print()


def _print_shared(curve: Curve) -> None:
    if not curve.shared:
        return
    domains: Sequence[str] = curve.shared[0].domains
    numbers = ("in every set", "in several", *(f"{name} only" for name in domains), "in none")
    table = plain_table("KLD at most", "chosen by", *numbers, right=("KLD at most", *numbers))
    for found in curve.shared:
        counts = (found.core, found.several, *(found.only[name] for name in domains), found.none)
        table.add_row(f"{found.bound:g}", found.by, *map(str, counts))
    results().print("Core and optional experts:", style="bold")
    print_table(table)
    results().print()


def _compared(point: CurvePoint) -> Comparison:
    assert point.total.comparison is not None, "every point is compared"
    return point.total.comparison
