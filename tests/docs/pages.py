"""The pages that people read: their commands, and their Python."""

import re
import shlex
from pathlib import Path

import coterie

ROOT = Path(coterie.__file__).parents[2]
CLIENTS = sorted((ROOT / "docs" / "clients").glob("*.md"))
PAGES = sorted(
    [ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.name != "cli.md"), *CLIENTS]
)


def section(page: str, heading: str, end: str | None = None) -> str:
    """The text from one heading to another, or to the next of the same level."""
    level = heading.partition(" ")[0]
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, heading
    stop = f"\n{end}\n" if end else f"\n{level} "
    return rest.partition(stop)[0]


def python_blocks(page: str) -> list[str]:
    """The Python of a page, block by block."""
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def command_lines(page: str) -> list[str]:
    """The lines of the indented blocks of a page."""
    return [line.strip() for line in page.splitlines() if line.startswith("    ") and not line.startswith("     ")]


def coterie_arguments(page: str) -> list[list[str]]:
    """What follows `coterie` in every command of a page, in blocks and within sentences."""
    inline = re.findall(r"`(coterie [a-z][^`]*)`", page)
    found = []
    for line in [*command_lines(page), *inline]:
        for part in re.split(r"\s\|\s|\s&&\s", line):
            words = shlex.split(part, comments=True)
            if words[:1] == ["coterie"] and len(words) > 1:
                found.append(words[1:])
    return found
