"""The command line that every benchmark has."""

from __future__ import annotations

import argparse
from pathlib import Path

WORK = Path(__file__).resolve().parent.parent / "work"


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser with ``--quick``, ``--work-dir`` and ``--wait-quiet``; its description is the script's first line."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small models and few rounds: to see that it works")
    parser.add_argument("--work-dir", type=Path, default=WORK, help="where generated models go (%(default)s)")
    parser.add_argument(
        "--wait-quiet",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="wait up to so long for a load average below 0.5",
    )
    return parser
