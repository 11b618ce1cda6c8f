"""Copies the benchmarks' results into docs/benchmarks.md, so that no figure there was typed by hand.

python benchmarks/publish.py            writes the page anew
python benchmarks/publish.py --check    ends with 1 if the page differs from the results
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from harness.report import RESULTS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_PLACE = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with the present results in their places."""

    def fill(match: re.Match[str]) -> str:
        text = (RESULTS / f"{match[2]}.md").read_text(encoding="utf-8")
        return f"{match[1]}\n{text}\n{match[3]}"

    return _PLACE.sub(fill, page)


def main() -> int:
    """Writes or checks the page."""
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page)
    if "--check" in sys.argv[1:]:
        if new != page:
            print(f"{PAGE} is not what benchmarks/results say: run python benchmarks/publish.py.", file=sys.stderr)
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
