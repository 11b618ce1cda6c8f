"""Copies the benchmarks' results into the README and pages of docs, so that no figure there was typed by hand.

python benchmarks/publish.py            writes the pages anew
python benchmarks/publish.py --check    ends with 1 if a page differs from the results
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from harness.report import RESULTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / name
        for name in (
            "benchmarks.md",
            "curves.md",
            "drop-cold.md",
            "fit.md",
            "hub-stores.md",
            "planning.md",
            "sizes.md",
            "speech.md",
            "speed.md",
            "which-file.md",
        )
    ),
)
UNKNOWN = "Not measured yet.\n"
_PLACE = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with the present results in their places."""

    def fill(match: re.Match[str]) -> str:
        file = RESULTS / f"{match[2]}.md"
        text = file.read_text(encoding="utf-8") if file.exists() else UNKNOWN
        return f"{match[1]}\n{text}\n{match[3]}"

    return _PLACE.sub(fill, page)


def main() -> int:
    """Writes or checks the pages."""
    stale = False
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        new = filled(page)
        if "--check" not in sys.argv[1:]:
            path.write_text(new, encoding="utf-8")
        elif new != page:
            stale = True
            print(f"{path} is not what benchmarks/results say: run python benchmarks/publish.py.", file=sys.stderr)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
