"""The options of other programs that the page says are understood are those that are understood."""

import re

from coterie.cli.option_names import _ARGUMENTS, _OTHERS

from .pages import ROOT, section

PAGE = (ROOT / "docs" / "coming-from.md").read_text()


def test_every_other_name_stands_beside_ours() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", section(PAGE, "## Options"), re.MULTILINE)[1:]
    assert len(rows) > 5
    listed = set()
    for _, ours, theirs in rows:
        for name in re.findall(r"`(--?[\w-]+)`", theirs):
            listed.add(name)
            assert name in _ARGUMENTS if ours == "arguments" else _OTHERS[name] in re.findall(r"`([\w-]+)`", ours), name
    assert set(_ARGUMENTS) <= listed
