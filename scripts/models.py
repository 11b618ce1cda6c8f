"""Writes docs/models.json, from which docs/models.md is made, from what a run of the matrix found equal.

    COTERIE_RECORD=1 pytest tests/engine/test_matrix.py --junitxml=matrix.xml
    python scripts/models.py matrix.xml
    python scripts/docs.py

Only a test that passed is recorded, under the release of transformers that it ran with; other releases stay.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import transformers

TARGET = Path(__file__).resolve().parent.parent / "docs" / "models.json"


def records(report: Path) -> dict[str, dict[str, Any]]:
    """Variant → what was found, with the dtypes in which it was equal."""
    found: dict[str, dict[str, Any]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if any(case.find(outcome) is not None for outcome in ("failure", "error", "skipped")):
            continue
        for entry in case.iter("property"):
            if entry.get("name") == "matrix":
                value = json.loads(entry.get("value") or "")
                record = found.setdefault(value["name"], value["facts"] | {"dtypes": []})
                record["dtypes"] = sorted({*record["dtypes"], value["dtype"].removeprefix("torch.")})
    return found


def main() -> int:
    """Replaces the records of the installed release of transformers."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    known = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {}
    known[transformers.__version__] = records(Path(sys.argv[1]))
    TARGET.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {TARGET.name}: {len(known[transformers.__version__])} variants of {transformers.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
