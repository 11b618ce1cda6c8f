"""The table of families in the docs is what the code says of the classes that are installed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import transformers
from torch import nn

from coterie.hf.releases import TESTED
from coterie.routing import routing_support
from routing.routers import ALONE, CLASSES, block_of, router_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "partial-stores.md"


def table() -> str:
    """The table, in Markdown."""
    families: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted({*CLASSES, *ALONE}):
        if name in ALONE:
            block = nn.Module()
            block.router = router_of(name)
        else:
            block = block_of(name)
        support = routing_support(block)
        if support.family is None:
            continue
        words = support.family if support.experts_per_token else f"{support.family} (K is fixed)"
        families[words].append(name)
    rows = [f"| {family} | {', '.join(names)} |" for family, names in sorted(families.items())]
    return "\n".join(["| how experts are chosen | classes |", "|---|---|", *rows]) + "\n"


def test_the_table_of_families_is_current():
    if transformers.__version__ != TESTED[-1]:
        pytest.skip("the docs show the classes of the newest release")
    expected = table()
    assert expected in PAGE.read_text(), f"docs/partial-stores.md should have:\n\n{expected}"
