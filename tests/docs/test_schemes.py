"""docs/schemes.md lists the parts of a model as the code has them."""

from __future__ import annotations

import re

from coterie.spec.dense_parts import DENSE_PARTS

from .pages import ROOT, section

ROW = re.compile(r"^\| `(\w+)` \| (.+) \| (always )?`(\w+)`[^|]*\|$", re.MULTILINE)


def test_the_table_of_parts_is_that_of_the_code() -> None:
    page = section((ROOT / "docs" / "schemes.md").read_text(), "### Schemes by part")
    rows = {name: (holds, bool(always), scheme) for name, holds, always, scheme in ROW.findall(page)}
    assert list(rows) == list(DENSE_PARTS)
    for name, (holds, always, scheme) in rows.items():
        part = DENSE_PARTS[name]
        assert (holds, always, scheme) == (part.holds, part.kept is not None, part.speaking), name
